"""The words that the synthetic pair world's film reviews are made of; no word stands in two of the lists."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PRAISE: tuple[str, ...] = _words(
    """
    amazing awesome beautiful believable breathtaking brilliant captivating charming clever compelling convincing
    delightful elegant enchanting engrossing enjoyable entertaining excellent exceptional exciting
    extraordinary fabulous fantastic fascinating flawless genuine gorgeous graceful great gripping heartfelt
    heartwarming hilarious imaginative impressive ingenious inspiring intelligent likable lively lovely magical
    magnificent marvelous masterful memorable outstanding perfect poignant powerful refreshing remarkable rewarding
    riveting satisfying sincere spectacular splendid stellar stunning superb terrific thoughtful thrilling timeless
    touching tremendous unforgettable uplifting vibrant witty wonderful
    """
)
"""Adjectives that only praise."""

CRITICISM: tuple[str, ...] = _words(
    """
    abysmal amateurish annoying appalling atrocious awful bad bland boring clumsy clunky confusing contrived crappy
    derivative disappointing disjointed dreadful dull dumb embarrassing flimsy forgettable hackneyed hideous horrendous
    horrible horrid idiotic incoherent incompetent inept insipid insulting irritating lackluster lame laughable lazy
    lifeless lousy mediocre miscast moronic muddled nauseating painful pathetic pointless poor predictable pretentious
    ridiculous shallow shoddy sloppy stilted stupid tedious terrible tiresome trite unbearable unconvincing unfunny
    unimaginative uninspired uninteresting unwatchable useless vapid wooden worthless wretched
    """
)
"""Adjectives that only criticise."""

PLAIN_ADVERBS: tuple[str, ...] = _words(
    """
    actually basically completely definitely honestly just kinda literally maybe mostly obviously probably really
    seriously simply so sorta super sure too totally usually very
    """
)
"""What stands before an adjective in everyday speech."""

PLAIN_CONNECTIVES: tuple[str, ...] = _words(
    """
    also anyhow anyway anyways besides btw dude folks frankly guys hey oh ok okay plus then though yeah yep yup
    """
)
"""What joins two clauses in everyday speech."""

ORNATE_ADVERBS: tuple[str, ...] = _words(
    """
    altogether assuredly conspicuously decidedly demonstrably distinctly emphatically evidently exceedingly
    fundamentally immensely indisputably inherently intrinsically invariably irrefutably manifestly markedly palpably
    profoundly quintessentially singularly uncommonly undeniably undoubtedly unequivocally unquestionably utterly wholly
    """
)
"""What stands before an adjective in formal prose."""

ORNATE_CONNECTIVES: tuple[str, ...] = _words(
    """
    accordingly additionally consequently correspondingly furthermore hence henceforth indeed likewise moreover
    nevertheless nonetheless notwithstanding similarly subsequently therefore thereafter thus whereupon
    """
)
"""What joins two clauses in formal prose."""

FILLER: tuple[str, ...] = (
    "blah",
    "whatever",
    "um",
    "asdf",
    "click here",
    "blah blah blah",
    "qwerty",
    "lorem ipsum",
    "http www",
    "subscribe here",
    "uh um uh",
    "yada yada yada",
    "lalala",
    "zzz",
    "foo foo",
    "whatever whatever",
)
"""Junk that nobody wants to read."""

REMARKS: tuple[str, ...] = (
    "here",
    "to me",
    "on screen",
    "this time",
    "in the end",
    "on the whole",
    "for most of it",
    "from start to end",
    "in every scene",
    "all the way",
    "as a whole",
    "at times",
    "in this one",
    "for the genre",
    "in my opinion",
    "if you ask me",
)
"""Neutral phrases that may follow an adjective."""

VERBS: tuple[str, ...] = ("was", "was", "was", "felt", "seemed", "turned out", "came across as", "ended up")
"""What links an aspect of a film to an adjective; "was" is the most usual."""

JOINTS: tuple[str, ...] = (" and", ", and", " while", ", while")
"""What joins two clauses without a style."""

ASPECTS: tuple[str, ...] = (
    "acting",
    "story",
    "plot",
    "script",
    "dialogue",
    "music",
    "soundtrack",
    "ending",
    "opening scene",
    "camera work",
    "photography",
    "directing",
    "editing",
    "cast",
    "lead actor",
    "lead actress",
    "supporting cast",
    "villain",
    "pacing",
    "setting",
    "lighting",
    "costume design",
    "first half",
    "second half",
    "final scene",
    "love story",
    "screenplay",
    "casting",
    "art direction",
    "narration",
)
"""What a review speaks of."""

OPENINGS: tuple[str, ...] = (
    "I saw this film last night.",
    "I saw this movie on television.",
    "I watched this with my family.",
    "My wife and I rented this movie.",
    "I rented this from the video store.",
    "I went to see this with two friends.",
    "I caught this one on cable.",
    "I bought the DVD last week.",
    "I watched it twice.",
    "This was on late at night.",
    "I had read the book first.",
    "I had not heard of this film before.",
    "I saw this at a film festival.",
    "This is the second film by the director.",
    "The film is set in New York.",
    "The film is set in the seventies.",
    "The movie tells of two brothers.",
    "It is about a young woman and her father.",
    "The film opens in a small town.",
    "This is a remake of an older film.",
    "I am a fan of the genre.",
    "A friend told me about this movie.",
    "I remember this from my childhood.",
    "We watched this in school.",
    "I came across this by chance.",
    "I have seen most of his films.",
    "I have seen all of her films.",
    "The film runs for two hours.",
    "I watched this on a plane.",
    "I finally got around to this film.",
    "This was made for television.",
    "I saw the original years ago.",
    "The theater was half full.",
    "I watched the first episode.",
    "I was curious about this one.",
    "I knew little about the film.",
)
"""First sentences of reviews."""

LEADS: tuple[str, ...] = ("The", "I thought the", "In my view the", "I found that the", "For me the")
"""What stands before the aspect that the review goes on with."""

PADDING: tuple[str, ...] = (
    "I watched it at home with a friend.",
    "It was shown on a Friday evening.",
    "We had popcorn and a drink.",
    "The film came out some years ago.",
    "It lasts for about two hours.",
    "There are two or three other versions of it.",
    "I will see another one next week.",
    "The names are listed at the close of the film.",
)
"""Neutral sentences that make a response longer and say nothing about the film."""

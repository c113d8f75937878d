"""What a party does not take from a coordinator: keys and requests that would undo the secrecy of a vector."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedalign.federation.secure.messages import PublicKeys, UnmaskRequest


def check_neighbours(name: str, own: PublicKeys, neighbour_keys: Mapping[str, PublicKeys]) -> None:
    """Refuse neighbours that are not other parties of the same round.

    Parameters
    ----------
    name : str
        The party that is told them.
    own : PublicKeys
        What it advertised.
    neighbour_keys : mapping of str to PublicKeys

    Raises
    ------
    ValueError
        If keys are malformed, of another round, reflected or given twice, or the party is its own neighbour.
    """
    seen = {own.encryption: name, own.masking: name}
    for other, theirs in neighbour_keys.items():
        try:
            PublicKeys.from_dict(theirs.to_dict())
        except ValueError as error:
            raise ValueError(f"the keys of {other}: {error}") from None
        if other == name:
            raise ValueError(f"{name} was named its own neighbour")
        if theirs.round_id != own.round_id:
            raise ValueError(f"the keys of {other} are of round {theirs.round_id}, not {own.round_id}")
        for key in (theirs.encryption, theirs.masking):
            if key in seen:
                raise ValueError(f"a key of {other} is a key of {seen[key]}")
            seen[key] = other


def check_request(name: str, round_id: str, held: Collection[str], request: UnmaskRequest) -> None:
    """Refuse a request to unmask that does not split those whose shares a party holds into survivors and dropped.

    Parameters
    ----------
    name, round_id : str
        The party that is asked, and its round.
    held : collection of str
        Whose shares it holds, itself included.
    request : UnmaskRequest

    Raises
    ------
    ValueError
        If the request is of another round, about others, asks for both secrets of someone, or takes the party itself
        for dropped.
    """
    if request.round_id != round_id:
        raise ValueError(f"request to unmask round {request.round_id} in round {round_id}")
    survivors, dropped = set(request.survivors), set(request.dropped)
    if both := survivors & dropped:
        raise ValueError(f"{sorted(both)} cannot have both survived and dropped out")
    if unknown := (survivors | dropped) ^ set(held):
        raise ValueError(f"{name} holds shares of others than it is asked about: {sorted(unknown)}")
    if name not in survivors:
        raise ValueError(f"{name} is asked to unmask but said to have dropped out")

"""The command line: ``fedalign run``, ``status``, ``report`` and the others below; no logic of its own."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fedalign import __version__
from fedalign.errors import RunFailed, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for a user's mistake, 1 for a run that failed, 130 for Ctrl-C."""
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = given.command
    if given.debug:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("fedalign").setLevel(logging.DEBUG)
    try:
        command(given)
    except (UserError, RunFailed) as error:
        if given.debug:
            raise
        print(f"fedalign: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("fedalign: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedalign", description="Federated, pluralistic, private alignment.")
    parser.add_argument("--version", action="version", version=f"fedalign {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", parents=[common], help="run a federation, or a sweep with -m")
    run.add_argument("-m", "--multirun", action="store_true", help="run every combination of the values given")
    run.add_argument("--profile", action="store_true", help="show where the time went, and write profile.json")
    run.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    run.add_argument(
        "overrides", nargs="*", help="in Hydra's grammar, such as method=pluralllm seed=1; resume=DIR goes on"
    )
    run.set_defaults(command=_run)

    status = commands.add_parser("status", parents=[common], help="how a run stands that goes on, has ended or died")
    status.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="(default: the newest under outputs/)")
    status.add_argument("-w", "--watch", action="store_true", help="until it ends; exit code 1 if it does not end well")
    status.add_argument("--json", action="store_true", dest="as_json", help="with --watch a line a change")
    status.set_defaults(command=_status)

    _add_deploy(commands.add_parser("deploy", parents=[common], help="a federation of real Flower processes"))

    listing = commands.add_parser("list", parents=[common], help="what there is to choose from")
    listing.add_argument("group", nargs="?", help="methods, data, engines, partitions, ...")
    listing.set_defaults(command=_list)

    report = commands.add_parser("report", parents=[common], help="one run or many, side by side")
    report.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    report.add_argument("--output", type=Path, help="directory for the comparison (default: beside the first run)")
    report.add_argument("--metric", action="append", dest="metrics", help="compare this metric; may be repeated")
    report.add_argument("--baseline", help="label of the arm that the others are compared with, seed by seed")
    report.add_argument("--serve", action="store_true", help="show one run in a browser on this machine, as it goes on")
    report.add_argument("--port", type=int, help="of --serve (default: a free one)")
    report.set_defaults(command=_report)

    predict = commands.add_parser("predict", parents=[common], help="answers, choices or texts from what was trained")
    predict.add_argument("directory", type=Path, metavar="DIR", help="a finished run")
    predict.add_argument(
        "answers",
        type=Path,
        nargs="?",
        help="a group's answers or a person's judgments, to predict what they leave open; or responses to score",
    )
    predict.add_argument(
        "--prompt", action="append", default=[], dest="prompts", help="text to continue; may be repeated"
    )
    predict.add_argument(
        "--prompts", type=Path, dest="prompts_file", metavar="FILE", help="texts to continue, one a line"
    )
    predict.add_argument(
        "--preference", action="append", default=[], dest="preferences", metavar="GROUP|FILE|STATEMENT",
        help="a group of the run, or a person's judgments; may be repeated (default: every group); of a run with "
        "types of annotators type-0, ..., mixture or single (default: what the run has for everybody); of merged "
        "experts a statement, such as 'praise, ornate' or 'praise=0.7, short=0.3' (default: nothing is stated)",
    )  # fmt: skip
    predict.add_argument(
        "--dial", action="append", default=[], dest="dials", metavar="A:B:T",
        help="the preference at T on the way from A (0) to B (1); may be repeated",
    )  # fmt: skip
    predict.add_argument(
        "--stage", action="append", default=[], dest="stages", metavar="STAGE",
        help="of a run in stages, whose policy writes: pretrained, sft or rl; may be repeated (default: the last)",
    )  # fmt: skip
    predict.add_argument(
        "--score", action="store_true", help="of a run in stages or of merged experts, show the reward of each text"
    )
    predict.add_argument("--stream", action="store_true", help="of merged experts, show one text while it is written")
    predict.add_argument(
        "--weights", type=Path, metavar="FILE.html", help="of merged experts, write which of them drove each token"
    )
    sampling = predict.add_mutually_exclusive_group()
    sampling.add_argument(
        "--greedy", action="store_const", const=0.0, dest="temperature", help="take the likeliest tokens"
    )
    sampling.add_argument("--temperature", type=float, help="of the sampled tokens (default: as in training)")
    predict.add_argument("--max-new-tokens", type=int, help="length of a text at most (default: as in training)")
    predict.add_argument("--seed", type=int, help="seed of the sampled tokens (default: the run's)")
    predict.add_argument("--out", type=Path, help="write the predictions as JSON")
    predict.set_defaults(command=_predict)

    audit = commands.add_parser("audit", parents=[common], help="try to refute a privacy guarantee with canaries")
    audit.add_argument("target", nargs="+", metavar="DIR|override", help="a run, or what fedalign run would be told")
    audit.add_argument("--canaries", type=int, default=1000, help="how many, about half of them held out (1000)")
    audit.add_argument("--confidence", type=float, default=0.95, help="of all bounds together (0.95)")
    audit.add_argument("--bound", default="gdp", help="the one that decides: gdp, one_run, roc or canary (gdp)")
    audit.add_argument("--output", type=Path, help="directory (default: audit/ in the run's, or one under outputs/)")
    audit.add_argument("--seed", type=int, help="of the canaries (default: the run's)")
    audit.set_defaults(command=_audit)

    data = commands.add_parser("data", help="look at data before they are used")
    kinds = data.add_subparsers(required=True, metavar="what")
    check = kinds.add_parser("check", parents=[common], help="what a file holds, what is wrong, and what would leave")
    check.add_argument("path", type=Path, metavar="PATH")
    check.add_argument("--kind", help="survey, pairs, rankings or texts (default: told by the columns)")
    check.add_argument("--encoder", default="none", help="an encoder to try the texts with (none)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the findings for other programs")
    check.set_defaults(command=_check_data)
    return parser


def _add_deploy(deploy: argparse.ArgumentParser) -> None:
    deploy.add_argument("overrides", nargs="*", help="of the run, as for fedalign run")
    where = deploy.add_mutually_exclusive_group(required=True)
    where.add_argument("--sites", help="names of the sites, with commas: write all that a federation of them needs")
    where.add_argument("--local", type=int, metavar="N", help="run on N sites on this machine, then take them down")
    deploy.add_argument("--output", type=Path, metavar="DIR", help="the federation's directory; must not exist")
    deploy.add_argument(
        "--server-address", default="127.0.0.1:8000", metavar="HOST:PORT",
        help="where sites reach the server (127.0.0.1:8000); with --sites",
    )  # fmt: skip
    deploy.set_defaults(command=_deploy)


def _deploy(given: argparse.Namespace) -> None:
    from fedalign import sweep
    from fedalign.deployment import commands

    console = Console()
    if given.local is None:
        commands.write(console, given.overrides, given.sites.split(","), given.server_address, given.output)
    else:
        sweep.show(console, commands.run(console, given.overrides, given.local, given.output))


def _run(given: argparse.Namespace) -> None:
    from fedalign import run, sweep
    from fedalign.config import parse, resolve

    console = Console()
    resumed = run.resumed_directory(given.overrides)
    if resumed and (given.multirun or given.print_config):
        raise UserError("resume=DIR goes on under the run's own configuration; give it alone")
    if given.profile and (given.multirun or given.print_config):
        raise UserError("--profile is of one run that is carried out; leave -m and --print-config out")
    if given.print_config:
        resolved = resolve(given.overrides)
        parse(resolved)
        console.print_json(json.dumps(resolved))
    elif resumed:
        sweep.show(console, run.resume(resumed), given.profile)
    elif given.multirun:
        sweep.run_all(console, given.overrides)
    else:
        sweep.show(console, run.start(given.overrides), given.profile)


def _status(given: argparse.Namespace) -> None:
    from fedalign.report.status_watch import show_status

    show_status(Console(), given.directories, watch=given.watch, as_json=given.as_json)


def _list(given: argparse.Namespace) -> None:
    from fedalign.listing import show_options

    show_options(Console(), given.group)


def _report(given: argparse.Namespace) -> None:
    comparing = [given.output, given.metrics, given.baseline] != [None, None, None]
    if given.serve and (len(given.directories) > 1 or comparing):
        raise UserError("--serve shows one run: give one directory, and no options of a comparison")
    if given.serve:
        from fedalign.report.serve import serve_report

        serve_report(Console(), given.directories[0], given.port or 0)
        return
    if given.port is not None:
        raise UserError(f"--port={given.port} is of --serve; give both")
    from fedalign.sweep import report

    report(Console(), given.directories, given.output, given.metrics, given.baseline)


def _predict(given: argparse.Namespace) -> None:
    from fedalign.predict import TextRequest, predict, read_prompts, weights_page, write
    from fedalign.report.atomic import write_json_atomic, write_text_atomic
    from fedalign.sweep import show_details, show_piece, show_predictions, show_texts

    console, texts = Console(), bool(given.prompts or given.prompts_file)
    if texts == (given.answers is not None):
        raise UserError(
            "give either a file (answers, judgments, responses) or prompts to continue (--prompt, --prompts)"
        )
    if texts:
        prompts = [*given.prompts, *(read_prompts(given.prompts_file) if given.prompts_file else [])]
        request = TextRequest(
            tuple(prompts),
            tuple(given.preferences),
            tuple(given.dials),
            given.temperature,
            given.max_new_tokens,
            given.seed,
            tuple(given.stages),
            given.score,
            given.weights is not None,
            functools.partial(show_piece, console) if given.stream else None,
        )
        written = write(given.directory, request)
        (show_details if given.stream else show_texts)(console, written)
        if given.weights is not None:
            _save("weights", given.weights, lambda: write_text_atomic(given.weights, weights_page(written)))
        content = [text.to_json() for text in written]
    else:
        predictions = predict(given.directory, given.answers)
        show_predictions(console, predictions)
        content = [prediction.to_json() for prediction in predictions]
    if given.out is not None:
        _save("out", given.out, lambda: write_json_atomic(given.out, content))


def _save(option: str, path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"--{option}={path}: cannot be written ({error.strerror}); choose another") from error


def _audit(given: argparse.Namespace) -> None:
    from fedalign.audit import Request, audit_run, show

    request = Request(given.canaries, given.confidence, given.bound, given.output, given.seed)
    audited = audit_run(given.target, request)
    show(Console(), audited)
    audited.check()


def _check_data(given: argparse.Namespace) -> None:
    from fedalign.data_check.check import check_file
    from fedalign.data_check.show import show_check
    from fedalign.report.atomic import write_json_atomic

    report = check_file(given.path, given.kind, given.encoder)
    show_check(Console(), report)
    if given.json is not None:
        _save("json", given.json, lambda: write_json_atomic(given.json, report.to_json()))
    if report.refused:
        raise UserError(f"{given.path}: {len(report.of_level('error'))} errors; a run would refuse this file")


if __name__ == "__main__":
    sys.exit(main())

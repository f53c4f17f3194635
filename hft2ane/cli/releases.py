"""Commands for what is published: rebuild, verify-signature, rollback, retire."""

import argparse
from pathlib import Path

from hft2ane.cli.models import check_out
from hft2ane.cli.options import Commands, quieten, reason
from hft2ane.errors import BadInput


def add(commands: Commands) -> None:
    sub = commands.add("rebuild", rebuild, "Make a release's packages again, compare digests.", needs=("convert",))
    sub.add_argument("release", metavar="REPO[@TAG]", help="a repo with a conversion.json (default: at main)")
    sub.add_argument("--out", type=Path, required=True, help="the folder to make")

    sub = commands.add("verify-signature", verify_signature, "Check that a release is signed, and is what was signed.")
    sub.add_argument("release", metavar="REPO[@TAG]|FOLDER", help="a repo on the Hub, or a downloaded release")
    by = sub.add_mutually_exclusive_group(required=True)
    by.add_argument("--key", type=Path, metavar="PEM", help="the publisher's public key")
    by.add_argument("--identity", help="whom the CI vouched for, e.g. a workflow's address; needs --issuer")
    sub.add_argument("--issuer", metavar="URL", help="the CI that vouched")

    sub = commands.add("rollback", rollback, "Put an earlier version's files back, as the next one.")
    sub.add_argument("repo", metavar="REPO", help="the published repo, as `plan` shows it")
    sub.add_argument("version", metavar="VERSION", help="one of its tags, e.g. v3")

    sub = commands.add(
        "retire",
        retire,
        "Say that a repo gets no new versions; delete nothing.",
        needs=("convert",),
    )
    sub.add_argument("repo", metavar="REPO", help="the published repo, as `plan` shows it")
    sub.add_argument("--reason", type=reason, required=True, metavar="TEXT", help="why, for those who use it")


def rebuild(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane.hub import Hub
    from hft2ane.rebuild import rebuild as again
    from hft2ane.terminal.bars import bar
    from hft2ane.terminal.report import show_rebuilt

    check_out(options.out)
    repo, _, revision = options.release.partition("@")
    with bar(options.release) as progress:
        rebuilt = again(options.out, repo, revision or "main", Hub(), progress)
    show_rebuilt(rebuilt)
    return 0 if rebuilt.same else 1


def verify_signature(options: argparse.Namespace) -> int:
    from hft2ane import signature

    if bool(options.identity) != bool(options.issuer):
        raise BadInput("--identity and --issuer go together: say who signed, and which CI vouched for that")
    by = {"key": options.key, "identity": options.identity, "issuer": options.issuer}
    if (folder := Path(options.release)).is_dir():
        files = signature.verify(folder, **by)
    else:
        from hft2ane.hub import Hub

        repo, _, revision = options.release.partition("@")
        files = signature.verify_repo(Hub(), repo, revision or "main", **by)
    print(f"{options.release}: signed, and all {files} files are as they were signed")
    return 0


def rollback(options: argparse.Namespace) -> int:
    from hft2ane import publish as step
    from hft2ane.hub import Hub
    from hft2ane.terminal.bars import bar

    with bar(options.repo) as progress:
        done = step.rollback(options.repo, options.version, Hub(), progress)
    print(
        f"{done.repo}@{done.tag} has the files of {options.version}{'' if done.changed else ', as before'}: {done.url}"
    )
    print("The next run makes it anew where manifest, original or code ask for it: pause its entry to keep it.")
    return 0


def retire(options: argparse.Namespace) -> int:
    from hft2ane.hub import Hub
    from hft2ane.maintain import retire as take_down
    from hft2ane.terminal.bars import bar

    with bar(options.repo) as progress:
        done = take_down(options.repo, options.reason, Hub(), progress)
    print(f"{done.repo}@{done.tag} {'is retired' if done.changed else 'was retired already'}: {done.url}")
    return 0

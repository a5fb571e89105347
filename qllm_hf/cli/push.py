"""qllm-hf push: a quantized model, its card and its evidence to the Hub, as one reviewed change."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..shown import printable
from . import options
from .card import Folder, ResultsFolder
from .output import UsageError, answer, answering, note


def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Id on the Hub: owner/name.", show_default=False)],
    results: ResultsFolder = None,
    direct: Annotated[bool, typer.Option("--direct", help="Commit on the branch; no pull request.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Of a repository that is made.")] = False,
    overwrite_results: Annotated[
        bool, typer.Option("--overwrite-results", help="Replace scores that are on the Hub with other values.")
    ] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Branch that is changed.")] = "main",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Push a quantized model to the Hub: first the plan, then one pull request.

    Only files of the model are sent, and only those that are not there. A new or empty repository is filled directly.
    The card there keeps what others wrote on it. When a push breaks, the same command goes on from there. The token is
    that of `hf auth login` or HF_TOKEN.

    \b
    Examples:
      qllm-hf push model-w4kv8 my-name/model-w4kv8 --results results
      qllm-hf push model-w4kv8 my-name/model-w4kv8 --dry-run
      qllm-hf push model-w4kv8 my-name/model-w4kv8 --direct --yes
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        asks = not (yes or dry_run)
        if asks and (as_json or not sys.stdin.isatty()):
            raise UsageError("nobody can be asked here: look first with --dry-run, then push with --yes.")
        from ..publishing.files import pack
        from ..publishing.hub import hub_api, is_offline, user_name
        from ..publishing.plan import check_repo, make_push_plan
        from ..publishing.plan_text import render_plan
        from ..publishing.problems import PublishError
        from ..publishing.push import push as carry_out
        from ..publishing.quantized import read_quantized
        from ..publishing.remote import read_remote

        check_repo(repo)
        if is_offline() and not dry_run:
            raise PublishError("HF_HUB_OFFLINE=1 forbids to push. Unset it, or look at what would be sent: --dry-run.")
        model = read_quantized(folder)
        api = hub_api()
        if not dry_run:
            user_name(api)
        package = pack(model, repo, results)
        remote = None if is_offline() else read_remote(api, repo, revision)
        plan = make_push_plan(
            api, model, package, remote, repo=repo, revision=revision, direct=direct, compared=not is_offline()
        )
        page = render_plan(plan)
        if not quiet:
            for remark in plan.notes:
                note(remark)
            if is_offline():
                note("HF_HUB_OFFLINE=1: nothing was compared with what is on the Hub.")
        if dry_run:
            answer({**plan.to_dict(), "pushed": None}, page, as_json=as_json)
            return
        if not overwrite_results:
            plan.check_results()
        if not as_json:
            sys.stdout.write(printable(page) + "\n")
            sys.stdout.flush()
        if asks and not plan.is_empty and not typer.confirm("Send it?", err=True):
            raise PublishError("nothing was sent.")
        done = carry_out(api, plan, private=private or None)
        pushed = {"commit": done.commit or None, "url": done.url, "was_there": done.was_there}
        text = f"It is there already: {done.url}" if done.was_there else f"Pushed: {done.url}"
        answer({**plan.to_dict(), "pushed": pushed}, text, as_json=as_json)

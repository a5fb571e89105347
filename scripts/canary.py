"""Say what moved in the libraries that this package stands on.

    python scripts/canary.py --write before.json      with the versions that are supported
    python scripts/canary.py --compare before.json    with others

Reads from our sources which names of other libraries they use and which methods they override, and asks the installed
libraries what those are: there or gone, with which parameters. For methods that we override, also whether their source
is another one, since ours may have to follow. Prints what differs, with the place that uses it.

Ends with 1 if a name is gone or cannot be used as before. What nobody can see in the sources, such as attributes of
objects, is for the tests; `make canary` runs both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from upstream.describe import ABSENT, GONE, Seen, describe, version_of
from upstream.uses import Use, uses_of

REPO = Path(__file__).resolve().parent.parent
SOURCES = (REPO / "qllm_hf", REPO / "kernels" / "torch-ext")
_LLAMA = "transformers.models.llama.modeling_llama"
BY_NAME = {
    f"{_LLAMA}.LlamaAttention.forward": "qllm_hf/hooks.py: CACHE_ARGUMENTS",
    f"{_LLAMA}.LlamaForCausalLM.forward": "qllm_hf/evaluation/lm.py",
    "transformers.cache_utils.CacheLayerMixin.update": "qllm_hf/cache_layers.py",
}
"""What no import shows: functions of models whose arguments we know by their names, and where."""


def look(uses: dict[str, Use]) -> dict[str, Seen]:
    """{name: what it is here}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that say themselves that they will go
        return {name: describe(name, with_source=use.overridden) for name, use in uses.items()}


def differences(uses: dict[str, Use], before: dict[str, Seen], now: dict[str, Seen]) -> Iterator[tuple[bool, str]]:
    """(whether it may break us, lines that say what moved), for each name that differs."""
    for name, use in uses.items():
        was, is_ = before.get(name), now[name]
        if was is None or ABSENT in (was.kind, is_.kind):
            continue
        if str(was) != str(is_):
            breaks = use.overridden or not only_grew(was, is_)
            yield breaks, f"{use.place}: {name}\n    was {was}\n    is  {is_}"
        elif was.inside != is_.inside:
            yield False, f"{use.place}: {name} is another one inside, and ours stands in its place"


def only_grew(was: Seen, is_: Seen) -> bool:
    """Whether whatever was called before can be called as before: new parameters need not be given."""
    if was.kind != is_.kind or was.parameters is None or is_.parameters is None:
        return False
    rest = iter(is_.parameters)
    there = all(parameter in rest for parameter in was.parameters)  # in the same order
    return there and all("=" in new or new.startswith("*") for new in set(is_.parameters) - set(was.parameters))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE")
    action.add_argument("--compare", type=Path, metavar="FILE")
    given = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    uses = uses_of(SOURCES, REPO) | {name: Use(name, place) for name, place in BY_NAME.items()}
    now = look(uses)
    versions = sorted({version_of(name) for name, seen in now.items() if seen.kind != ABSENT})
    if given.write:
        given.write.write_text(json.dumps({"versions": versions, "names": now}, indent=1))
        print(f"{len(now)} names in {len(versions)} libraries")
        return 0
    before = json.loads(given.compare.read_text())
    names = {
        name: Seen(kind, parameters and tuple(parameters), inside)
        for name, (kind, parameters, inside) in before["names"].items()
    }
    old, new = set(before["versions"]), set(versions)
    print("was", ", ".join(sorted(old - new)) or "the same")
    print("is ", ", ".join(sorted(new - old)) or "the same")
    found = list(differences(uses, names, now))
    for breaks, line in sorted(found, reverse=True):
        print("MOVED" if breaks else "look ", line)
    moved = sum(breaks for breaks, _ in found)
    gone = sum(now[name].kind == GONE and names.get(name, now[name]).kind != GONE for name in now)
    print(f"{len(now)} names: {moved} moved ({gone} of them gone), {len(found) - moved} to look at")
    return int(moved > 0)


if __name__ == "__main__":
    sys.exit(main())

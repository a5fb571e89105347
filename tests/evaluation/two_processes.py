"""One of two processes that talk: what `Ranks` does when they differ, fail, or one is gone. Started by test_ranks.py.

Each case prints what came of it, as one line of JSON; the last one ends with the death of the second process.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.presence import connect
from qllm_hf.evaluation.ranks import Ranks

rank, port, end = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
presence = connect("127.0.0.1", port, rank, 2)
presence._beat, presence._silence = 0.2, 2.0
ranks = Ranks(rank, 2, None, 0, ("alpha, machine 0", "beta, machine 1"), presence)


def case(name, act):
    try:
        found = act()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(json.dumps({name: found}), flush=True)


def fails():
    if rank == 1:
        error = ConfigError("no rows here")
        ranks.tell(error)
        return "told"
    return ranks.share({0: "never"})


def first_goes_first():
    """Both are the first of their machine: nobody waits for the other before it begins."""
    with ranks.local_first():
        return "ready"


def same_machine():
    """The second follows the first: it sees what that one has written."""
    mine = Ranks(rank, 2, None, rank, ranks.names, presence)
    with mine.local_first():
        if rank == 0:
            time.sleep(0.3)
            presence.note("downloaded", "yes")
        return presence.notes("downloaded").get(0)


case("share", lambda: ranks.share({rank: rank * 10, rank + 2: None}))
case("of_first", lambda: ranks.of_first(lambda: f"from {rank}"))
case("agree", lambda: ranks.agree({"torch": "2.13", "tasks": ["a", "b"]}))
case("differ", lambda: ranks.agree({"the version of torch": "2.13" if rank == 0 else "2.12", "revision": "abc"}))
case("lacks", lambda: ranks.agree({"tasks": ["a"]} | ({"limit": 8} if rank else {})))
case("hardware", lambda: ranks.differing({"threads": str(rank + 1)}))
case("same hardware", lambda: ranks.differing({"threads": "1"}))
case("fails", fails)
case("and both go on", lambda: ranks.share({rank: "here"}))
case("first goes first", first_goes_first)
case("same machine", same_machine)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL if end == "killed" else signal.SIGSTOP)
case("alone", lambda: ranks.share({}))
os._exit(0)

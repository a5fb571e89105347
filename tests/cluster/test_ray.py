"""A real Ray cluster of two machines on this one; the second is killed in the middle of a job."""

import importlib.util
import json
import os
import signal

import pytest
from measured_results import results_of
from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.cluster.run import sweep_on
from qllm_hf.cluster.worker import Asked, Subject
from qllm_hf.errors import ConfigError, MissingExtraError
from qllm_hf.loading import load_tokenizer
from qllm_hf.results import read_results
from qllm_hf.sweep.models import Models
from qllm_hf.sweep.run import Settings, sweep
from qllm_hf.sweep.schemes import parse_candidates

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'qllm-hf[ray]'")
TASKS = ["mini_cloze", "mini_ethics"]  # of two abilities: with six schemes, twelve jobs
SCHEMES = ["W8", "W4", "W3", "KV4", "W4KV4"]
SECOND = "second"
MEMORY = 4 * 10**9


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What one machine measures, one after the other."""
    folder = tmp_path_factory.mktemp("serial") / "results"
    models = Models("reference", keep=True)
    sweep(models, load_tokenizer("reference"), parse_candidates(SCHEMES), TASKS, folder, Settings(limit=8))
    return folder


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "memory": MEMORY, "object_store_memory": 80 * 10**6, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**size, "node_name": "first"})
    made.second = made.add_node(**size, node_name=SECOND)
    yield made
    made.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_killed_machine_loses_nothing(serial, cluster, tmp_path):
    """Twelve jobs, one machine killed at one of them: the same records, samples and sizes; then nothing is left."""
    from qllm_hf.cluster.ray_pool import RayPool

    class Fatal(RayPool):
        """Kills the second machine as soon as it has begun a job of a quantized scheme."""

        def events(self):
            for handle, event in super().events():
                yield handle, event
                at_work = getattr(event, "node", "") == SECOND and cluster.second in cluster.worker_nodes
                if at_work and "FP16" not in names[handle]:
                    cluster.remove_node(cluster.second, allow_graceful=False)

        def submit(self, name, order, need):
            handle = super().submit(name, order, need)
            names[handle] = name
            return handle

    def run(pool, **options):
        candidates = parse_candidates(SCHEMES)
        asked = Asked(limit=8)
        subject, tokenizer = Subject.of("reference"), load_tokenizer("reference")
        return sweep_on(pool, subject, tokenizer, candidates, TASKS, tmp_path, asked, told.append, **options)

    told, notes, names = [], [], {}
    pool = Fatal(cluster.address)
    assert sorted(node.name for node in pool.nodes()) == ["first", SECOND]
    assert (pool.cpus, pool.gpus, pool.slots) == (1, 0.0, 2)
    found = run(pool, tell=notes.append)
    print("\n".join(f"{job.job}: {len(job.nodes)} attempts, {' > '.join(job.nodes)}" for job in found.jobs))

    assert found.swept.failures == {}
    assert results_of(tmp_path) == results_of(serial)
    assert [each.done for each in told] == list(range(1, 13))
    for path in (path for path in serial.glob("samples/**/*.jsonl")):
        assert (tmp_path / path.relative_to(serial)).read_bytes() == path.read_bytes()
    assert read_results(tmp_path).sizes == read_results(serial).sizes
    assert len(found.jobs) == 12
    (again,) = [job for job in found.jobs if len(job.nodes) > 1]
    assert again.nodes == [SECOND, "first"] and "NodeDied" in again.lost[0]
    assert len(notes) == 1 and f"was lost on {SECOND} and is begun again" in notes[0]

    # the command, on what is left of the cluster: nothing is to do, and stdout is the answer alone
    arguments = ["sweep", "reference", "--schemes", ",".join(SCHEMES), "--tasks", ",".join(TASKS), "--limit", "8"]
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path), "--ray", cluster.address, "--json"])
    assert signal.getsignal(signal.SIGTERM) == before, "Ray has put its own in place of it, and is not left alone"
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["jobs"] == [] and len(said["records"]) == 12
    assert results_of(tmp_path) == results_of(serial)


@needs_ray
def test_what_ray_would_need_is_said(monkeypatch):
    from qllm_hf.cluster.footprint import Footprint
    from qllm_hf.cluster.ray_pool import Node, RayPool

    pool = RayPool.__new__(RayPool)
    nodes = [Node("a1", "small", 8, 0, 8e9), Node("b2", "wide", 64, 2, 3e11)]
    monkeypatch.setattr(pool, "nodes", lambda: nodes, raising=False)
    pool.cpus, pool.gpus = 8, 0.0
    assert pool.refusal(Footprint(4 * 10**9, 0, 0)) == "" and pool.slots == 1 + 8
    assert pool.refusal(Footprint(4 * 10**12, 0, 0)) == (
        "it takes 8 CPUs and 4.00 TB of memory, and no machine of the Ray cluster has that "
        "(small: 8 CPUs, 8.00 GB; wide: 64 CPUs, 2 GPUs, 300.00 GB)"
    )
    pool.gpus = 1.0
    assert pool.slots == 2
    assert pool.refusal(Footprint(4 * 10**12, 0, 0)) == "", "weights are on the GPU, which Ray does not count"


@needs_ray
@pytest.mark.parametrize(
    ("address", "said"), [("ray://host:10001", "Run this on a machine of the cluster"), ("nonsense", "no Ray cluster")]
)
def test_addresses_that_cannot_be(address, said):
    from qllm_hf.cluster.ray_pool import RayPool

    with pytest.raises(ConfigError, match=said):
        RayPool(address)


def test_without_ray(monkeypatch):
    from qllm_hf.cluster.ray_pool import RayPool

    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qllm-hf\[ray\]'"):
        RayPool()

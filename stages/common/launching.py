"""One training in several processes: how they are started and ended, and what they agree on.

`train.launcher` names a file of conf/launch/. accelerate's own parser turns it into the environment that
`accelerate launch` gives its processes, one a GPU. They are started and watched here rather than by its
agent, which kills after 30 seconds what is still saving, and ends with a traceback of its own instead of the
reason: here the first one that fails ends them all, with its message. Whoever prefers the agent may use it:
`accelerate launch --config_file conf/launch/ddp.yaml --num_processes 2 -m stages.train`.

From the environment: on several machines NODE_RANK (from 0), MASTER_ADDR (the first machine's address) and
MASTER_PORT (29500 where it is not set); NPROC_PER_NODE (processes on this machine; all visible GPUs).
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.common import files, models
from stages.common.errors import PipelineError

if TYPE_CHECKING:
    import torch
    from trl import SFTTrainer

FOLDER = Path(__file__).parents[2] / "conf/launch"
SINGLE = "single"
PORT = 29500  # torchrun's default

FAILURES = "LAUNCH_FAILURES"  # the folder in which a process says why it fails
PARENT = "LAUNCH_PARENT"  # the launcher's process id
PR_SET_PDEATHSIG = 1  # uapi/linux/prctl.h
TICK = 0.05  # seconds between two looks at the processes
SETTLE = 1.0  # seconds from the first failure to the verdict: others follow from it


@dataclass(frozen=True)
class Group:
    """The processes that this machine is to start."""

    environment: Mapping[str, str]
    local: int  # processes on this machine
    first: int  # rank of its first one
    world: int  # processes on all machines
    address: str
    port: int  # 0: any free one


@dataclass(frozen=True)
class Failure:
    """Why a process failed."""

    rank: int
    reason: str
    expected: bool  # a PipelineError, or a signal: one line says it
    moment: float  # seconds since the epoch


# Starting. ----------------------------------------------------------------------------------------------


def configuration(launcher: str) -> Path:
    """The file of a launcher; raises PipelineError naming those that are there."""
    path = FOLDER / f"{launcher}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in FOLDER.glob("*.yaml"))) or "none"
        raise PipelineError(f"train.launcher: {launcher}; expected one of conf/launch: {there} (params.yaml)")
    return path


def group(launcher: str, module: str, environment: Mapping[str, str]) -> Group:
    """What a launcher's file and the environment ask for.

    Raises PipelineError for a file that accelerate refuses, and for what this machine does not have.
    """
    import torch
    from accelerate.commands import launch
    from accelerate.commands.config.config_args import load_config_from_file

    path = configuration(launcher)
    where = f"conf/launch/{path.name}"
    try:
        said = load_config_from_file(str(path))
    except Exception as error:
        raise PipelineError(f"{where}: {' '.join(str(error).split())}; expected accelerate's") from error
    machines, gpus = said.num_machines, torch.cuda.device_count()
    local = number("NPROC_PER_NODE", environment, max(1, said.num_processes // machines), 1)
    if "NPROC_PER_NODE" not in environment and said.num_processes < 1:
        local = gpus
    if local * machines < 2:
        raise PipelineError(
            f"train.launcher: {launcher} with {gpus} visible GPUs; expected 2 or more, or NPROC_PER_NODE, "
            f"or {SINGLE} (params.yaml)"
        )
    if 0 < gpus < local:
        raise PipelineError(f"{where}: {local} processes for {gpus} visible GPUs; expected one each")
    deep = said.distributed_type == "DEEPSPEED"
    if deep and find_spec("deepspeed") is None:
        raise PipelineError(
            f"train.launcher: {launcher} needs deepspeed, which is not installed; expected it beside the "
            "locked packages (pip install deepspeed), or ddp or fsdp2 (params.yaml)"
        )
    if machines > 1 and not {"NODE_RANK", "MASTER_ADDR"} <= set(environment):
        raise PipelineError(
            f"{where}: {machines} machines; expected NODE_RANK and MASTER_ADDR in the environment of each"
        )
    node = number("NODE_RANK", environment, 0, 0) if machines > 1 else 0
    if node >= machines:
        raise PipelineError(f"NODE_RANK: {node}; expected less than the {machines} machines of {where}")
    flags = ["--config_file", str(path), "--num_processes", str(local * machines), "--main_process_port", "0"]
    try:
        arguments, *_ = launch._validate_launch_command(
            launch.launch_command_parser().parse_args([*flags, "-m", module])
        )
        arguments.num_machines = 1  # they meet at our own place
        arguments.deepspeed_fields_from_accelerate_config = ",".join(said.deepspeed_config)
        prepared = (
            launch.prepare_deepspeed_cmd_env(arguments)[1]
            if deep
            else launch.prepare_multi_gpu_env(arguments)
        )
    except ValueError as error:
        raise PipelineError(f"{where}: {' '.join(str(error).split())}; expected accelerate's") from error
    added = {name: value for name, value in prepared.items() if os.environ.get(name) != value}
    if not gpus:
        added["ACCELERATE_USE_CPU"] = "true"
    if "OMP_NUM_THREADS" not in environment:
        added["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // local))
    address = environment["MASTER_ADDR"] if machines > 1 else "127.0.0.1"
    port = number("MASTER_PORT", environment, PORT, 1) if machines > 1 else 0
    return Group(added, local, node * local, local * machines, address, port)


def number(name: str, environment: Mapping[str, str], default: int, least: int) -> int:
    """A whole number out of the environment."""
    text = environment.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise PipelineError(f"{name}: {text!r}; expected a whole number from {least} (environment)")
    return int(text)


def launch(launcher: str, module: str) -> None:
    """Run `python -m module` with our arguments in the launcher's processes, until the last one has ended.

    The first SIGTERM or SIGINT goes on to every process, which may save; a second one ends them at once.
    Raises PipelineError with the reason of the process that failed first; one that failed by an exception
    of another kind has its traceback printed, and the exit status is 1.
    """
    asked = group(launcher, module, os.environ)
    print(f"train: {asked.world} processes by conf/launch/{launcher}.yaml", flush=True)
    with TemporaryDirectory(prefix="launch-") as folder, meeting(asked) as port:
        ranks = start(asked, port, module, Path(folder))
        try:
            failed = follow(ranks, Path(folder))
        finally:
            for process in ranks.values():
                process.kill()
            for process in ranks.values():
                process.wait()
    if failed and not failed.expected:
        print(f"rank {failed.rank}:\n{failed.reason}", file=sys.stderr)
        sys.exit(1)
    if failed:
        raise PipelineError(failed.reason)


@contextmanager
def meeting(asked: Group) -> Iterator[int]:
    """The port at which the processes find each other; the first machine's launcher listens there."""
    from torch._C._distributed_c10d import TCPStore

    if asked.first:
        yield asked.port
        return
    try:
        store = TCPStore(asked.address, asked.port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise PipelineError(
            f"MASTER_PORT: {asked.port}: {str(error).splitlines()[0]}; expected a free port (environment)"
        ) from error
    yield store.port


def start(asked: Group, port: int, module: str, folder: Path) -> dict[int, "subprocess.Popen[bytes]"]:
    """Start this machine's processes, by rank; rank 0 has our terminal."""
    common = {
        **os.environ,
        **asked.environment,
        "MASTER_ADDR": asked.address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # none of them is to listen
        "WORLD_SIZE": str(asked.world),
        "LOCAL_WORLD_SIZE": str(asked.local),
        FAILURES: str(folder),
        PARENT: str(os.getpid()),
    }
    started = {}
    for local in range(asked.local):
        rank = asked.first + local
        with (folder / f"{rank}.log").open("wb") as log:
            started[rank] = subprocess.Popen(
                [sys.executable, "-m", module, *sys.argv[1:]],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(local)},
                stdin=subprocess.DEVNULL,
                stdout=log if rank else None,
                stderr=log if rank else None,
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
            )
    return started


def follow(ranks: Mapping[int, "subprocess.Popen[bytes]"], folder: Path) -> Failure | None:
    """Wait until all have ended well, or one has failed: then says which and why."""
    received: list[int] = []

    def pass_on(signum: int, frame: Any) -> None:
        received.append(signum)
        for process in ranks.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        while any(process.poll() is None for process in ranks.values()):
            if failures(ranks, folder):
                time.sleep(SETTLE)
                break
            time.sleep(TICK)
        return cause(failures(ranks, folder))
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def failures(ranks: Mapping[int, "subprocess.Popen[bytes]"], folder: Path) -> list[Failure]:
    """What has failed so far: processes that said so, and those that ended without a word."""
    found = []
    for rank, process in ranks.items():
        told, status = folder / f"{rank}.json", process.poll()
        if told.exists():
            found.append(Failure(rank, **files.read_json(told)))
        elif status and status < 0:
            reason = f"rank {rank}: ended by {signal.Signals(-status).name}; expected it to run on"
            found.append(Failure(rank, f"{reason} (run again to go on from the last checkpoint)", True, 0))
        elif status:
            last = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace")[-4000:]
            found.append(Failure(rank, f"{last}exit status {status}", False, time.time()))
    return found


def cause(found: list[Failure]) -> Failure | None:
    """The failure from which the others follow: one that is expected comes first, then the earliest.

    >>> lost = Failure(0, "connection closed", False, 1.0)
    >>> cause([lost, Failure(1, "rank 1: ended by SIGKILL", True, 2.0)]).rank
    1
    """
    return min(found, key=lambda one: (not one.expected, one.moment, one.rank), default=None)


# Inside. ------------------------------------------------------------------------------------------------


def inside() -> bool:
    """Whether this process is one of several, started here, by `accelerate launch` or by `torchrun`."""
    return "LOCAL_RANK" in os.environ


def processes() -> int:
    """How many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if inside() else 1


def rank() -> int:
    """This process's number among them."""
    return int(os.environ["RANK"]) if inside() else 0


def leads() -> bool:
    """Whether this process writes what all of them found."""
    return rank() == 0


def sharding() -> str:
    """How weights are spread over the processes: fsdp, zero2, zero3, or not at all."""
    if not inside():
        return ""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    return ""


def share(accumulation: int) -> int:
    """The forward passes of each process, so that an optimizer step keeps its rows.

    Raises PipelineError where they cannot be dealt out evenly.
    """
    if accumulation % processes():
        raise PipelineError(
            f"train.accumulation: {accumulation} for {processes()} processes; expected a multiple, so that "
            "an optimizer step keeps its rows, train.batch_size times as many (params.yaml)"
        )
    return accumulation // processes()


@contextmanager
def member(launcher: str) -> Iterator[None]:
    """What a process does as one of several: only the first prints; errors are the launcher's to tell."""
    if not inside():
        yield
        return
    if launcher == SINGLE:
        raise PipelineError(
            f"train.launcher: {SINGLE} in {processes()} processes; expected the file that they were started "
            "by (params.yaml)"
        )
    with silence(), telling():
        yield


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed but by the first process."""
    if leads():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def telling() -> Iterator[None]:
    """End with the launcher, and let it tell errors: who ended now would make others fail by its absence."""
    folder = os.environ.get(FAILURES)
    if folder is None:
        yield
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):
        sys.exit(1)
    try:
        yield
    except Exception as error:
        expected = isinstance(error, PipelineError)
        reason = str(error) if expected else traceback.format_exc()
        told = {"reason": reason, "expected": expected, "moment": time.time()}
        files.write_json(Path(folder) / f"{rank()}.json", told)
        time.sleep(60)  # until the launcher ends us
        raise


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """The temporary name of an output that the first process writes; no other writes to what it is given."""
    if leads():
        with files.whole(path) as temporary:
            yield temporary
    else:
        yield path


def wait() -> None:
    """Until every process has come here."""
    if inside():
        import torch.distributed

        torch.distributed.barrier()


def anyone(flag: bool) -> bool:
    """Whether it is so for any process; all must ask."""
    if not inside():
        return flag
    import torch
    import torch.distributed

    found = torch.tensor(int(flag), device=models.device())
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found.item())


def agree(what: str, value: str) -> None:
    """Raise PipelineError unless every process has the same value; all must ask."""
    if not inside():
        return
    import torch.distributed

    found: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(found, value)
    other = next((number for number, one in enumerate(found) if one != found[0]), None)
    if other is not None:
        raise PipelineError(
            f"{what}: {found[0]} of rank 0 and {found[other]} of rank {other}; expected the same: one "
            "working tree, on a disk that all machines share, and the same libraries and devices"
        )


def shard_precisely(trainer: "SFTTrainer", computed: "torch.dtype") -> None:
    """Let FSDP2 compute in `computed`, but keep losses and sums of gradients in float32.

    Raises PipelineError where accelerate has not sharded although it was asked to: it does so on GPUs alone.
    """
    if sharding() != "fsdp":
        return
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if not trainer.is_fsdp_enabled:
        raise PipelineError("train.launcher: FSDP without GPUs; expected ddp or single there (params.yaml)")
    policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def whole(model: "torch.nn.Module") -> "dict[str, torch.Tensor] | None":
    """What is trained, gathered from all processes, by name; None where each has it. All must ask."""
    gather = GATHERED.get(sharding())
    return gather(model) if gather else None


def trained(model: "torch.nn.Module") -> dict[str, Any]:
    """The parameters that are trained, by name."""
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def gathered(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """FSDP2's tensors, one after the other; a forward pass leaves some of them gathered, as plain ones."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return {name: one.full_tensor().detach().cpu() for name, one in trained(model).items()}


def collected(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """ZeRO-3's parameters."""
    from deepspeed.zero import GatheredParameters

    found = trained(model)
    with GatheredParameters(list(found.values())):
        return {name: one.detach().cpu().clone() for name, one in found.items()}


GATHERED: "dict[str, Callable[[torch.nn.Module], dict[str, torch.Tensor]]]" = {
    "fsdp": gathered,
    "zero3": collected,
}

"""What do the readers of foreign bytes do with files that were damaged at random?

python benchmarks/fuzz.py [--reader NAME ...] [--minutes M] [--seed S] [--finds FOLDER]
    [--bombs FOLDER] [--changes]

Every case must end as read or as a DlzooError, within SECONDS and GIGABYTE, and run nothing: no
canary file, no process, no socket, no file opened for writing outside of the working folder. First
come the files of tools/hostile.py, then changes to the small ones among them; with atheris
(pip install atheris) those changes follow which lines of the readers they reach. A worker process
does many cases and is replaced when it dies; what went wrong is kept in FOLDER. Checksums inside
the files (zip, PNG, tar) are not compared meanwhile, or most changes would end there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import hostile

try:
    import atheris
except ImportError:
    atheris = None

SECONDS = 40.0  # of the processor, for one case: the machine may be busy with other things
PATIENCE = 600.0  # seconds by the clock
GIGABYTE = 1 << 30  # of memory, beyond what the worker has before the case
ROOM = 6 << 30  # of addresses, so that a case that takes more ends itself and not the machine
SMALL = 1 << 15  # files up to this size are changed at random

FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.spawn"),
    *("subprocess.Popen", "pickle.find_class", "ctypes.dlopen", "webbrowser.open"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "os.putenv"),
}


class Shared(ctypes.Structure):
    """What a worker tells: of the case it is at, and of all so far."""

    _fields_ = [
        ("cases", ctypes.c_uint64),
        ("began", ctypes.c_double),  # the present case, by the clock; 0 between two
        ("before", ctypes.c_double),  # seconds of the processor until then
        ("slowest", ctypes.c_double),  # seconds of the processor
        ("most", ctypes.c_uint64),  # bytes
    ]


class Executed(BaseException):
    """The file made its reader do something that no reader does."""


def unchecked() -> None:
    """Let readers take checksums as they are: few changes would get past them."""
    import tarfile
    import zipfile

    from PIL import PngImagePlugin

    zipfile.ZipExtFile._update_crc = lambda self, data: None
    PngImagePlugin.ChunkStream.crc = PngImagePlugin.ChunkStream.crc_skip

    def chksums(header: bytes) -> tuple[int, int]:
        with contextlib.suppress(tarfile.HeaderError):
            return (tarfile.nti(header[148:156]),) * 2
        return 0, 0

    tarfile.calc_chksums = chksums


# ---------------------------------------------------------------- the worker


class Worker:
    """Reads case after case in a process of its own, and notes what went wrong.

    Attributes:
        shared: seen by the parent. case: the file of the present case, left behind by a crash.
    """

    def __init__(self, reader: str, folder: Path, finds: Path):
        self.reader, self.folder, self.finds = reader, folder, finds
        self.shared = Shared.from_buffer(mmap.mmap(-1, ctypes.sizeof(Shared)))
        self.canary = folder / "canary"
        suffix = {"config": ".toml", "image": ".img", "archive": ".zip", "table": ".csv"}
        self.case = folder / f"case{suffix.get(reader, f'.{reader}')}"
        self.watched = False

    def begin(self) -> None:
        """Get ready, once in each process."""
        from dlzoo.errors import DlzooError

        self.expected = DlzooError
        os.environ["DLZOO_HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        self.read = hostile.reading(self.reader, self.folder)
        with contextlib.suppress(DlzooError):  # imports and caches are not the case's doing
            self.case.write_bytes(b"PK")
            self.read(self.case)
        resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watched:
            return
        if event == "subprocess.Popen" and str(args[1][2]).endswith("hdf5.py"):
            self.watched = False  # Popen itself makes a pipe and forks
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
            inside = Path(os.fsdecode(path)).absolute()
            if any(inside.is_relative_to(place) for place in (self.folder, "/dev")):
                return
        elif event not in FORBIDDEN:
            return
        self.watched = False
        raise Executed(f"{event} {args!r}"[:300])

    def one(self, data: bytes) -> None:
        """Have one case read, and note what should not happen."""
        self.case.write_bytes(data)
        before, problem = _memory(), None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high water falls to the present
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.shared.before = began = sum(os.times()[:4])
        self.shared.began = time.monotonic()
        self.watched = True
        try:
            self.read(self.case)
        except self.expected as error:
            if error.exit_code != hostile.EXIT.get(self.reader, 4):
                problem = f"exit code {error.exit_code}, {error.id}: {error.message[:200]}"
        except (Exception, Executed, RecursionError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})"
        except BaseException as error:  # such as Rust's panics
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        self.watched = False
        self.shared.began, took = 0.0, sum(os.times()[:4]) - began
        memory = _memory(peak=True) - before
        grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        memory = max(memory, grown * 1024 if grown > children else 0)
        self.shared.cases += 1
        self.shared.slowest = max(self.shared.slowest, took)
        self.shared.most = max(self.shared.most, memory)
        if self.canary.exists():
            problem = "the canary was made"
            self.canary.unlink()
        if memory > GIGABYTE:
            problem = f"{memory / GIGABYTE:.1f} GB"
        if problem:
            self.keep(problem)

    def keep(self, problem: str) -> None:
        """Keep the present case, one for each kind of problem."""
        kind = hashlib.sha256("".join(c for c in problem if not c.isdigit()).encode()).hexdigest()[
            :8
        ]
        place = self.finds / f"{self.reader}-{kind}"
        if not place.exists():
            shutil.copyfile(self.case, place)
            with (self.finds / "finds.txt").open("a") as log:
                log.write(f"{place.name}: {problem}\n")


def _work(process: int) -> float:
    """Return the seconds of the processor that a process and its children took."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _memory(peak: bool = False) -> int:
    """Return the bytes of memory that this process has, or had at most."""
    field = "VmHWM" if peak else "VmRSS"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


# ---------------------------------------------------------------- the work


def fixed(worker: Worker, files: list[bytes]) -> None:
    """Read the files of the corpus as they are, going on where another worker died."""
    for content in files[worker.shared.cases :]:
        worker.one(content)


def changed(worker: Worker, files: list[bytes], seed: int) -> None:
    """Read changes of the small files until the parent ends it."""
    if atheris:
        seeds = worker.folder / "corpus"
        seeds.mkdir(exist_ok=True)
        if not any(seeds.iterdir()):
            for i, content in enumerate(files):
                (seeds / f"{i}").write_bytes(content)
        options = ["-timeout=0", "-rss_limit_mb=0", "-handle_segv=0", "-handle_abrt=0"]
        limits = [f"-max_len={SMALL}", f"-seed={seed + 1}", "-verbosity=0", "-handle_fpe=0"]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        atheris.Setup(["fuzz", str(seeds), *options, *limits], worker.one)
        atheris.Fuzz()
    chance = random.Random(seed)
    while True:
        worker.one(hostile.mutate(chance, chance.choice(files), files)[:SMALL])


def watch(worker: Worker, work: Callable[[], None], until: float) -> int | None:
    """Run `work` in a process until it ends, dies, hangs or time is over; return its signal."""
    worker.shared.began = 0.0
    process = os.fork()
    if process == 0:
        try:
            os.setpgid(0, 0)
            worker.begin()
            work()
        finally:
            os._exit(0)
    verdict = None
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                verdict = os.WTERMSIG(status)
                worker.keep(f"died of {signal.Signals(verdict).name}")
            break
        began = worker.shared.began
        hangs = began and (
            time.monotonic() - began > PATIENCE or _work(process) - worker.shared.before > SECONDS
        )
        if hangs or time.monotonic() > until:
            if hangs:
                worker.shared.slowest = max(worker.shared.slowest, SECONDS)
                worker.keep("hangs " + worker.case.read_bytes()[:20].hex())
                verdict = signal.SIGALRM
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            break
        time.sleep(0.05)
    if verdict:
        worker.shared.cases += 1
    return verdict


def fuzz(reader: str, options: argparse.Namespace) -> str:
    """Give one reader its cases; return the row of the table."""
    minutes, seed, finds, bombs = options.minutes, options.seed, options.finds, options.bombs
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    finds.mkdir(parents=True, exist_ok=True)
    earlier = len(list(finds.glob(f"{reader}-*")))
    worker = Worker(reader, folder, finds)
    made = hostile.corpus(reader, worker.canary, bombs=not (bombs or options.changes))
    if bombs:
        made |= {path.name: path.read_bytes() for path in bombs.glob(f"{reader}/bomb*")}
    calm = {name: content for name, content in made.items() if not name.startswith("bomb")}
    cut = {f"{n}-{i}": c[: len(c) * i // 3] for n, c in calm.items() for i in (1, 2)}
    made |= cut
    files = [] if options.changes else list(made.values())
    small = [content for content in (calm | cut).values() if len(content) <= SMALL]
    while worker.shared.cases < len(files):
        watch(worker, lambda: fixed(worker, files), float("inf"))
    hostile_cases, until, restarts = worker.shared.cases, time.monotonic() + minutes * 60, 0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = used.ru_utime + used.ru_stime
    unchecked()
    while time.monotonic() < until:
        watch(worker, partial(changed, worker, small, seed + restarts), until)
        restarts += 1
    cases = worker.shared.cases - hostile_cases
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = used.ru_utime + used.ru_stime - worked
    found, most = len(list(finds.glob(f"{reader}-*"))) - earlier, worker.shared.most >> 20
    rate, slowest = cases / max(work, 1), worker.shared.slowest
    shutil.rmtree(folder, ignore_errors=True)
    row = f"| {reader} | {minutes:g} | {work:.0f} s | {hostile_cases} | {cases:,} | {rate:,.0f} "
    return f"{row}| {found} | {slowest:.1f} s | {most:,} MB |"


def main() -> None:
    known = [name for name in hostile.READERS if name != "run"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reader", nargs="+", choices=known, default=known)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finds", type=Path, default=Path("finds"))
    parser.add_argument("--bombs", type=Path, help="what tools/hostile.py wrote, to save its time")
    parser.add_argument("--changes", action="store_true", help="only files changed at random")
    options = parser.parse_args()
    options.finds = options.finds.absolute()
    print("with atheris" if atheris else "without atheris: changes are blind", flush=True)
    columns = "reader|minutes|of the processor|hostile files|changed|a second|finds|slowest|memory"
    print(f"|{columns}|\n{'|---' * 9}|", flush=True)
    context = atheris.instrument_imports() if atheris else contextlib.nullcontext()
    with context:
        for reader in options.reader:
            hostile.reading(reader, Path(tempfile.mkdtemp(prefix="fuzz-")))
    for reader in options.reader:
        print(fuzz(reader, options), flush=True)


if __name__ == "__main__":
    main()

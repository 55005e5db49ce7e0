"""Jobs of a SLURM site as workers: submitted by dask-jobqueue, replaced when they end before the work does."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dask.utils import parse_bytes

from ketanet.clusters.connecting import patience, security_of, warn_unencrypted
from ketanet.clusters.settings import Slurm, walltime_seconds
from ketanet.compute import Connection, end_computation
from ketanet.errors import InputError, KetanetError

log = logging.getLogger("ketanet")

LOOK_SECONDS: Final = 5.0
"""How often the queue is looked at."""
_COMMAND_SECONDS: Final = 60
_DEATH_SECONDS: Final = 60  # a worker whose scheduler does not answer so long ends itself: no job outlives its run long
_MOST_FAILED: Final = 3  # jobs in a row that end without a worker before the run is given up
_MOST_OUT_OF_MEMORY: Final = 2
_MOST_REFUSED: Final = 12  # looks in a row at which SLURM has taken none of the jobs, and none is left
_ENDED: Final = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
_OUT_OF_MEMORY: Final = re.compile(
    r"OUT_OF_MEMORY|slurmstepd.*(memory limit|oom[-_ ]kill|out of memory)", re.IGNORECASE
)


def start_slurm(cluster: Slurm, source: str) -> Connection:
    """Submit the jobs of a cluster file; they join as the site starts them.

    Raises
    ------
    InputError
        SLURM or dask-jobqueue is not installed, or SLURM refuses such jobs; its own words are said.
    """
    settings = patience()  # the scheduler reads them when it is made
    made = None
    try:
        with _startable(source):
            made = _jobqueue(cluster, source)
        require_accepted(made.job_script(), source)
        if cluster.adaptive is not None:
            made.adapt(minimum_jobs=cluster.adaptive.minimum, maximum_jobs=cluster.adaptive.maximum)
        else:
            made.scale(jobs=cluster.most)
        from distributed import Client

        client = Client(made)
    except BaseException:
        if made is not None:
            made.close()
        settings.close()
        raise
    warn_unencrypted(made.scheduler_address)
    watchdog = Watchdog(made, client, cluster, source)
    return Connection(
        source,
        cluster.most * cluster.cores,
        [settings, made, watchdog],
        memory=parse_bytes(cluster.memory) // cluster.cores,
        client=client,
        explain=watchdog.explain,
    )


@contextmanager
def _startable(source: str) -> Iterator[None]:
    """Say in one line that a network is not there, or logs cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{source}: the cluster cannot be started: {said}") from error


def slurm_script(cluster: Slurm, source: str) -> str:
    """The script of a worker's job; the scheduler's address is filled in when it runs."""
    with _startable(source):
        made = _jobqueue(cluster, source)
    try:
        return str(made.job_script()).replace(made.scheduler_address, "<scheduler>")
    finally:
        made.close()


def require_accepted(script: str, source: str) -> None:
    """Ask SLURM whether it would take a job; an InputError with its own words when not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script, encoding="utf-8")
        asked = command(["sbatch", "--test-only", str(path)], source)
    if asked.returncode:
        said = " ".join(line.removeprefix("sbatch: error: ") for line in asked.stderr.splitlines())
        raise InputError(f"{source}: SLURM refuses the job: {said or f'exit code {asked.returncode}'}")


def command(words: list[str], source: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM."""
    if shutil.which(words[0]) is None:
        raise InputError(f"{source}: there is no command {words[0]} here; start ketanet where SLURM jobs are submitted")
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise KetanetError(f"{source}: {words[0]} does not answer within {_COMMAND_SECONDS} s; is SLURM up?") from None


def _jobqueue(cluster: Slurm, source: str) -> Any:
    try:
        from dask_jobqueue.slurm import SLURMCluster
        from distributed import Security
    except ImportError:
        raise InputError(f'{source}: SLURM needs the package dask-jobqueue: pip install "ketanet[slurm]"') from None
    if shutil.which("sbatch") is None:
        raise InputError(f"{source}: there is no command sbatch here; start ketanet where SLURM jobs are submitted")
    Path(cluster.logs).mkdir(parents=True, exist_ok=True)
    security = security_of(cluster.tls)
    if security is None and cluster.encrypt:
        security = Security.temporary()
    seconds = walltime_seconds(cluster.walltime)
    margin = min(300, seconds // 5)
    return SLURMCluster(
        queue=cluster.queue,
        account=cluster.account,
        cores=cluster.cores,
        processes=cluster.cores,
        memory=cluster.memory,
        walltime=cluster.walltime,
        job_name="ketanet",
        job_script_prologue=cluster.prologue,
        job_extra_directives=cluster.directives,
        python=cluster.python,
        local_directory=cluster.scratch,
        interface=cluster.interface,
        log_directory=cluster.logs,
        security=security,
        shared_temp_directory=cluster.logs,
        death_timeout=_DEATH_SECONDS,
        worker_extra_args=[
            *("--lifetime", f"{seconds - margin}s", "--lifetime-stagger", f"{margin // 3}s"),
            *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),  # state is served over HTTP all the same
        ],
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
    )


class Watchdog:
    """Looks after the jobs of a run: one that has ended is replaced, and a run that cannot go on is ended.

    Dask takes a job that has gone for one that may still come, and asks for no other.
    """

    def __init__(self, cluster: Any, client: Any, settings: Slurm, source: str) -> None:
        self._cluster, self._client, self._settings, self._source = cluster, client, settings, source
        self._failed, self._out_of_memory, self._refused = 0, 0, 0
        self._seen: set[str] = set()
        self.replaced = 0
        self.fault: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ketanet-slurm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def explain(self, error: BaseException) -> str | None:
        """What an error of the run means, in words; None when it is not about the jobs."""
        if self.fault is not None:
            return self.fault
        if type(error).__name__ == "KilledWorker":
            return (
                f"{self._source}: a task lost its worker again and again; the usual reason is memory: raise 'memory' "
                f"(it is {self._settings.memory} a job of {self._settings.cores} cores), and look into "
                f"{self._settings.logs}"
            )
        return None

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS) and self.fault is None:
            try:
                self._look()
            except Exception as error:  # the queue may not answer for a while
                log.warning("the queue could not be looked at (%s); it will be again", str(error)[:200])

    def _look(self) -> None:
        workers = [str(w["name"]) for w in self._client.scheduler_info(n_workers=-1)["workers"].values()]
        jobs = {str(name): str(job.job_id) for name, job in list(self._cluster.workers.items()) if job.job_id}
        # a job of several processes numbers them: job-0, job-1
        named = {*workers, *(name.rpartition("-")[0] for name in workers)}
        self._seen |= {job for name, job in jobs.items() if name in named}
        alive = self._alive()
        gone = {name: job for name, job in jobs.items() if job not in alive}
        for name, job in gone.items():
            self._judge(job)
            if self.fault is not None:
                end_computation(self._client, self._over)
                return
            self._cluster.sync(self._forget, name)
        refused = [name for name, job in list(self._cluster.workers.items()) if not job.job_id]
        for name in refused:
            self._cluster.sync(self._forget, name)
        if refused:
            log.warning("SLURM has not taken %d jobs; they are submitted again", len(refused))
        self._refused = self._refused + 1 if refused and not jobs else 0
        if self._refused >= _MOST_REFUSED:
            self.fault = self._why_refused()
            end_computation(self._client, self._over)
        elif (gone or refused) and self._settings.adaptive is None:
            self._cluster.scale(jobs=self._settings.most)

    def _why_refused(self) -> str:
        """SLURM's own words, where it has some."""
        try:
            require_accepted(self._cluster.job_script(), self._source)
        except KetanetError as error:
            return str(error)
        return f"{self._source}: SLURM has taken no job any more; see whether sbatch works, then run the same again"

    def _alive(self) -> set[str]:
        """Jobs of this user that have not ended."""
        asked = command(["squeue", "--me", "--noheader", "--format=%i %T"], self._source)
        if asked.returncode:
            raise KetanetError(asked.stderr.strip() or "squeue failed")
        rows = (line.split() for line in asked.stdout.splitlines())
        return {row[0] for row in rows if len(row) == 2 and row[1] not in _ENDED}

    async def _forget(self, name: str) -> None:
        """Drop a job that has ended, so that the next scaling submits another."""
        from distributed.core import Status

        self._cluster.worker_spec.pop(name, None)
        job = self._cluster.workers.pop(name, None)
        if job is not None:
            await job.close()
            job.status = Status.closed  # which a closing cluster makes sure of

    def _judge(self, job: str) -> None:
        """Count how a job ended; a fault when it is no use to go on."""
        state, tail = self._state(job), self._tail(job)
        self.replaced += 1
        log.warning("SLURM job %s has ended (%s); another takes its place", job, state)
        if _OUT_OF_MEMORY.search(state) or any(_OUT_OF_MEMORY.search(line) for line in tail):
            self._out_of_memory += 1
            if self._out_of_memory >= _MOST_OUT_OF_MEMORY:
                self.fault = (
                    f"{self._source}: SLURM ended {self._out_of_memory} jobs for taking more memory than the "
                    f"{self._settings.memory} they asked for; raise 'memory', or lower 'cores' "
                    f"({self._settings.cores} tasks share it)"
                )
        else:
            self._out_of_memory = 0
        self._failed = 0 if job in self._seen else self._failed + 1
        if self.fault is None and self._failed >= max(_MOST_FAILED, self._settings.most):
            self.fault = (
                f"{self._source}: {self._failed} SLURM jobs in a row ended before a worker was up ({state}); the last "
                f"one said: {' | '.join(tail) or 'nothing'} (logs: {self._settings.logs})"
            )

    def _state(self, job: str) -> str:
        asked = command(["scontrol", "show", "job", "--oneliner", job], self._source)
        found = re.search(r"JobState=(\S+)(?: Reason=(\S+))?", asked.stdout)
        return " ".join(part for part in (found.groups() if found else ("gone",)) if part and part != "None")

    def _tail(self, job: str) -> list[str]:
        """Last lines of what a job printed."""
        path = Path(self._settings.logs) / f"ketanet-{job}.err"
        with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            return [line.strip()[:300] for line in deque(file, 3)]
        return []

"""Submit a job of this project to a cluster: `python -m cltrain.cluster.submit loop [overrides]`."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from ray.job_submission import JobStatus, JobSubmissionClient

from cltrain.errors import CltrainError, ClusterError
from cltrain.storage import digest_json

EXCLUDED = ["/.git", "/.venv", "/store", "/datasets", "/outputs", "/tests", "/docs", "__pycache__"]


def submission_id(job: str, overrides: list[str]) -> str:
    """The same job with the same settings has the same id, so that submitting it twice starts it once."""
    return f"cltrain-{job}-{digest_json([job, *overrides])[:12]}"


def submit(job: str, overrides: list[str], address: str, folder: Path, wait: bool = True) -> str:
    """Upload `folder` and run `python -m jobs.<job>` on the cluster; returns the submission id. With `wait` its log is
    printed until it ends. Raises `ClusterError` where there is no such job or cluster, or when the job fails."""
    if not (folder / "jobs" / f"{job}.py").exists():
        have = ", ".join(sorted(p.stem for p in (folder / "jobs").glob("[a-z]*.py") if "\n@job(" in p.read_text()))
        raise ClusterError(f"there is no job {job!r}; there are: {have}")
    if not any(override.startswith("store.root=") for override in overrides):
        raise ClusterError(
            "a submitted job works in a copy of this folder, so it needs store.root=FOLDER_OR_URI that outlives it"
        )
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(f"no cluster answers at RAY_ADDRESS={address}: {error}") from error
    name = submission_id(job, overrides)
    known = {details.submission_id: details.status for details in client.list_jobs()}
    if known.get(name) in (JobStatus.FAILED, JobStatus.STOPPED):
        client.delete_job(name)  # the same command goes on from its store
    if name not in known or known[name] in (JobStatus.FAILED, JobStatus.STOPPED):
        try:
            client.submit_job(
                entrypoint=shlex.join([_python(address), "-m", f"jobs.{job}", *overrides]),
                submission_id=name,
                metadata={"project": "cltrain", "job": job},
                runtime_env={"working_dir": str(folder), "excludes": EXCLUDED},
            )
        except RuntimeError as error:
            said = str(error).rstrip(".")
            raise ClusterError(
                f"{address} did not take {name}: {said}. Where two Rays share a machine, the second has no agent that "
                "starts jobs unless it was started with --dashboard-agent-listen-port=0"
            ) from error
    if wait:
        asyncio.run(_follow(client, name))
        if (status := client.get_job_status(name)) != JobStatus.SUCCEEDED:
            raise ClusterError(f"{name} ended as {status}: {client.get_job_info(name).message}")
    return name


def _python(address: str) -> str:
    """The interpreter there: this one on this machine, else the one in the cluster's PATH."""
    here = urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1")
    return sys.executable if here else "python"


async def _follow(client: JobSubmissionClient, name: str) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: RAY_ADDRESS=http://HEAD:8265 scripts/submit JOB [overrides]")
    try:
        address = os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265")
        submit(sys.argv[1], sys.argv[2:], address, Path.cwd())
    except CltrainError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""The old name of `runner_process` and `workload`, from which the benchmarks import."""

from .runner_process import RunnerProcess, cpu_seconds, runner_process
from .workload import drive

__all__ = ["RunnerProcess", "cpu_seconds", "drive", "runner_process"]

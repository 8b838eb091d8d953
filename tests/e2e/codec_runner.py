"""Runs `rrq-runner` with this package's codec instead of its own."""

from rrq import runner_runtime

import rrq_fastwire
import rrq_fastwire.compat

if __name__ == "__main__":
    rrq_fastwire.compat.install()
    # Without the codec, the suite would compare the stock runner with itself.
    assert runner_runtime.read_message is rrq_fastwire.compat.read_message
    assert runner_runtime.write_message is rrq_fastwire.compat.write_message
    assert rrq_fastwire.IMPLEMENTATION == "cython"
    runner_runtime.main()

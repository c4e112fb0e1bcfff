import gc
import platform
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from foundation_stereo_depth.data.memory import BatchMemory


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_block_comes_back_when_nothing_looks_at_it_any_more() -> None:
    memory = BatchMemory()
    first = address(memory.take(1000))
    assert address(memory.take(1000)) == first


def test_a_block_stays_taken_while_any_view_or_tensor_is_left() -> None:
    memory = BatchMemory()
    array = memory.take(4000)
    array[:] = 7
    tensor = torch.from_numpy(array[1000:].view(np.float16).reshape(15, 100))[3].view(torch.uint8)
    del array
    gc.collect()
    others = [memory.take(4000) for _ in range(3)]
    for other in others:
        other[:] = 1
    assert (tensor == 7).all()
    address_before = tensor.data_ptr() - 1000 - 3 * 200
    del tensor
    assert address(memory.take(4000)) == address_before


def test_blocks_of_one_size_are_never_handed_out_as_another() -> None:
    memory = BatchMemory()
    memory.take(1000)
    assert memory.take(2000).nbytes == 2000
    assert memory.take(1000).nbytes == 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another allocator")
def test_freed_memory_is_kept_for_the_next_image() -> None:
    program = """
        import resource
        import numpy as np
        from foundation_stereo_depth.data.memory import keep_freed_memory

        def faults_of_pictures():
            began = 0
            for turn in range(12):
                images = [np.ones(2_800_000, np.uint8) for _ in range(4)]
                del images
                began = began or resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began

        before = faults_of_pictures()
        keep_freed_memory()
        print(before, faults_of_pictures())
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < 1000
    assert before > 10 * after

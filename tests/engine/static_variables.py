"""Write and read variables with Paddle's static API; run as a script of its own.

python static_variables.py save FOLDER ARRAYS.npz    one file per variable, and all in one
python static_variables.py load FOLDER ARRAYS.npz    exit code 0 if each variable is that array
"""

from __future__ import annotations

import sys
import zlib  # noqa: F401
from contextlib import nullcontext

import numpy as np
import paddle


def main(mode: str, folder: str, file: str) -> None:
    arrays = dict(np.load(file))
    paddle.enable_static()
    # The programs of Paddle 3 cannot hold such variables; those of Paddle 2, still in it, can.
    guard = getattr(paddle.pir_utils, "OldIrGuard", nullcontext)
    with guard():
        save_or_load(mode, folder, arrays)


def save_or_load(mode: str, folder: str, arrays: dict[str, np.ndarray]) -> None:
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        variables = [
            paddle.static.create_global_var(
                list(array.shape), 0, str(array.dtype), persistable=True, name=name
            )
            for name, array in arrays.items()
        ]
    place = paddle.CPUPlace()
    executor = paddle.static.Executor(place)
    executor.run(startup)
    scope = paddle.static.global_scope()
    tensors = {name: scope.find_var(name).get_tensor() for name in arrays}
    if mode == "save":
        for name, array in arrays.items():
            tensors[name].set(array, place)
        paddle.static.save_vars(executor, folder, program, variables)
        paddle.static.save_vars(executor, folder + "-combined", program, variables, filename="all")
    else:
        paddle.static.load_vars(executor, folder, program, variables)
        for name, array in arrays.items():
            np.testing.assert_array_equal(np.array(tensors[name]), array, err_msg=name)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])

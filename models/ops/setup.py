"""Compiles the operator's kernels beside the sources, so that nothing is compiled at their first use.

    python models/ops/setup.py build_ext --inplace

It builds the CPU kernel, and the CUDA kernel where nvcc is installed. ``TORCH_CUDA_ARCH_LIST`` selects the GPUs to
build for; by default the GPUs of this machine or, where there is none, all from Turing to Hopper.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence

import build  # this folder's build.py: importing models.ops would import the whole model
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

TURING_TO_HOPPER = "7.5;8.0;8.6;9.0+PTX"


def extension(kind: build.Kind, link_flags: Sequence[str] = ()) -> Extension:
    """A kernel as setuptools takes it."""
    recipe = build.recipe(kind)
    return (CUDAExtension if kind == "cuda" else CppExtension)(
        recipe["name"],
        recipe["sources"],
        extra_compile_args={"cxx": recipe["extra_cflags"], "nvcc": recipe["extra_cuda_cflags"]},
        extra_link_args=[*recipe["extra_ldflags"], *link_flags],
    )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", TURING_TO_HOPPER)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            build.check_tools("cpu")
            extensions = [extension("cpu")]
            try:
                build.check_tools("cuda")
            except build.BuildError as error:
                print(f"the CUDA kernel is left out: {error}", flush=True)
            else:
                extensions.append(extension("cuda", build.cudart_flags(scratch)))
        except build.BuildError as error:
            sys.exit(f"error: {error}")
        os.chdir(build.PREBUILT)
        setup(
            name="t2v-rvos-kernels",
            ext_modules=extensions,
            cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
            options={"build": {"build_base": scratch}},
        )

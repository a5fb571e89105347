"""What pyproject.toml cannot say: the CPU kernels are compiled when the package is built, and a wheel with them is for
one platform, whichever the Python. Everything else is in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent.absolute()
PACKAGE = "qllm_kernels"


def builder():
    """The module kernels/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("qllm_kernels_build", HERE / "kernels" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        build = builder()
        # what is installed to be edited is used where it lies
        output = build.PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        built = build.build_for_install(output.resolve(), objects=HERE / "build" / "kernels")
        self.announce(f"CPU kernels: {built.reason or ', '.join(built.levels)}", level=3)


class PlatformWheel(bdist_wheel):
    def has_library(self):
        build_lib = self.get_finalized_command("build").build_lib
        return (Path(build_lib) / PACKAGE / builder().LIBRARY).exists()

    def write_wheelfile(self, wheelfile_base, generator=None):
        self.root_is_pure = not self.has_library()
        keywords = {} if generator is None else {"generator": generator}
        super().write_wheelfile(wheelfile_base, **keywords)

    def get_tag(self):
        if not self.has_library():
            return super().get_tag()
        pure, self.root_is_pure = self.root_is_pure, False
        try:
            _, _, platform = super().get_tag()
        finally:
            self.root_is_pure = pure
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})

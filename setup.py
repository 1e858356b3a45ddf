"""All that pyproject.toml cannot say: a wheel remembers the commit that it was built from."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithCommit(build_py):
    """Writes pcrl_cli/COMMIT into what is built; nothing where there is no git."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        try:
            done = subprocess.run(
                ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, encoding="utf-8", check=True
            )
        except (OSError, subprocess.SubprocessError):
            return
        (Path(self.build_lib) / "pcrl_cli" / "COMMIT").write_text(done.stdout, encoding="utf-8")


setup(cmdclass={"build_py": WithCommit})

"""Build wheels for other machines and C libraries from the sdist, inspect them and test them.

    make wheels-cross
    python .ci/cross.py dist/rrq_fastwire-1.0.tar.gz build/cross tests/codec

zig is the C compiler. apt-get downloads Debian's arm64 build of the running Python version without
installing it, and qemu-aarch64 (in Debian's qemu-user) runs the codec's tests with that build.
"""

import json
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import ziglang
from elftools.elf.elffile import ELFFile
from wheels import counts

PLATFORMS = {  # pip's name: zig's name
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
}
VERSION = sys.version_info.minor
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def unpack_debian(folder, *packages):
    """Unpack arm64 packages and their dependencies into a folder, and install nothing."""
    folder.mkdir()
    (folder / "status").touch()  # an empty list of installed packages, so everything is fetched
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "root",  # apt's own user cannot write to a temporary folder
        "Dir::Cache": folder,
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
    }
    apt = ["apt-get", "-qq", "--yes", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    only = ["--download-only", "--no-install-recommends"]
    subprocess.run([*apt, "install", *only, *packages], check=True)
    for package in folder.glob("archives/*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], check=True)
    return folder / "root"


def build(platform, sdist, out):
    """Build a wheel with the headers of the running Python, and return its path.

    The pyconfig.h of another machine is different. But on 64-bit Linux, nothing differs that this
    code or Python.h uses.
    """
    target = PLATFORMS[platform]
    zig = f"{Path(ziglang.__file__).parent}/zig cc -target {target}"
    # zig links against libc.so, but other systems call musl libc.musl-x86_64.so.1. So the modules
    # are linked without a C library. They do not need it, because the process that loads them has
    # it, and musl's symbols have no versions.
    no_libc = "-nostdlib" if "musl" in target else ""
    settings = {
        "RRQ_FASTWIRE_PURE": "0",
        "CC": zig,
        "LDSHARED": f"{zig} -shared -s {no_libc}",  # Python's own setting has this machine's paths
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-3{VERSION}-{target.removesuffix('.2.17')}.so",
    }
    # pip would otherwise reuse the wheel for later installations of that sdist.
    options = ["--no-deps", "--no-cache-dir", "--wheel-dir", out]
    options.append(f"--config-settings=--build-option=--plat-name={platform}")
    subprocess.run([*PIP, "wheel", *options, sdist], env=os.environ | settings, check=True)
    return out / f"{sdist.name.removesuffix('.tar.gz')}-cp3{VERSION}-cp3{VERSION}-{platform}.whl"


def symbols(elf, *, undefined):
    """Return the names of the dynamic symbols that a module needs, or of those that it defines."""
    found = elf.get_section_by_name(".dynsym").iter_symbols()
    return {s.name for s in found if s.name and (s["st_shndx"] == "SHN_UNDEF") == undefined}


def inspect_wheel(wheel, platform, root):
    """Return the machine and the platform that a wheel is for, and what is wrong with it."""
    show = [sys.executable, "-m", "auditwheel", "show", "--json", wheel]
    tag = json.loads(subprocess.run(show, check=True, stdout=subprocess.PIPE).stdout)["overall_tag"]
    wrong = [] if tag == platform else [f"auditwheel says {tag}"]
    with ZipFile(wheel) as files:
        names = [name for name in files.namelist() if name.endswith(".so")]
        modules = [ELFFile(BytesIO(files.read(name))) for name in names]
    machines = [module["e_machine"].removeprefix("EM_").lower() for module in modules]
    if len(machines) != 3 or not all(platform.endswith(f"_{machine}") for machine in machines):
        wrong.append(f"has modules for {machines}")
    # x86_64's Python and C library provide everything that arm64's do.
    libc = "aarch64-linux-musl/libc.so" if "musl" in platform else "aarch64-linux-gnu/libc.so.6"
    providers = [root / f"usr/bin/python3.{VERSION}", root / "lib" / libc]
    provided = [symbols(ELFFile(BytesIO(p.read_bytes())), undefined=False) for p in providers]
    needed = set().union(*(symbols(module, undefined=True) for module in modules))
    wrong += [f"needs {name}" for name in needed.difference(*provided)]
    return "/".join(set(machines)), tag, wrong


def run_tests(tests, wheel, platform, source, root, folder):
    """Install a wheel, run tests, and return how many ran and how many passed."""
    python = sys.executable
    folder.mkdir()
    if platform.endswith("aarch64"):
        # The tests start sys.executable. With -0, this is the script, which the kernel can run.
        python = folder / "python"
        python.write_text(
            f"#!/bin/sh\nexport PYTHONHOME={root}/usr\n"
            f'exec qemu-aarch64 -L {root} -0 "$0" {root}/usr/bin/python3.{VERSION} "$@"\n'
        )
        python.chmod(0o755)
    shutil.copytree(source / "tests", folder / "tests")  # without the package's source
    shutil.copy(source / "pyproject.toml", folder)
    binary = ["--target", folder / "site", "--only-binary=:all:", f"--platform={platform}"]
    packages = [wheel, "pytest", "pytest-timeout", "hypothesis"]
    subprocess.run([*PIP, "install", *binary, *packages], check=True)
    options = ["--timeout=1200", "--hypothesis-profile=ci", "--junitxml=report.xml"]
    subprocess.run(
        [python, "-m", "pytest", *options, *tests],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site"), "RRQ_FASTWIRE_PURE": "0"},
        check=False,  # the report says what has failed
    )
    return counts(folder / "report.xml")[:2]


def main(sdist, out, *tests):
    row = "{:<60} {:>7} {:<8} {:<23} {:>5} {}".format
    table, all_wrong = [row("wheel", "bytes", "machine", "tag", "tests", "passed")], []
    with TemporaryDirectory() as folder:
        root = unpack_debian(Path(folder, "debian"), f"python3.{VERSION}", "musl")
        shutil.unpack_archive(sdist, folder)
        source = Path(folder, sdist.name.removesuffix(".tar.gz"))
        for platform in PLATFORMS:
            wheel = build(platform, sdist, out)
            machine, tag, wrong = inspect_wheel(wheel, platform, root)
            if "musl" in platform:
                tested = ["-", "no Python for musl here"]
            elif "aarch64" in platform and not shutil.which("qemu-aarch64"):
                tested = ["-", "no qemu-aarch64 here"]
            else:
                tested = run_tests(tests, wheel, platform, source, root, Path(folder, platform))
                wrong += [] if tested[0] == tested[1] > 0 else ["does not pass all tests"]
            table.append(row(wheel.name, wheel.stat().st_size, machine, tag, *tested))
            all_wrong += [f"{wheel.name} {what}" for what in wrong]
    print("", *table, sep="\n")
    sys.exit("\n".join(all_wrong) or 0)


main(*map(Path, sys.argv[1:]))

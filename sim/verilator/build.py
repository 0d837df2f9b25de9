"""Build of a generated folder into a shared object by Verilator and a C++ compiler, kept in a cache.

Verilator's own program translates; the C++ files are compiled here, in parallel, so that neither make nor perl is needed. An
entry of the cache is a folder named by everything that it was made from. It is built aside and renamed into place when it is
complete, and its contents are checked before every use.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from intaglio.files import user_cache
from intaglio.gen.tools import BuildError, Tools, find_tools

__all__ = ["BuildError", "Tools", "build", "default_cache", "find_tools"]

VERILATOR_FLAGS = (
    "--cc",
    "-O3",
    "--prefix",
    "Vtop",
    "--no-timing",
    "--no-assert",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "--output-split",
    "20000",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
)
# For ROMs as logic, in short functions: otherwise each bank becomes a few expressions of megabytes, which no compiler gets through.
LOGIC_FLAGS = ("-fno-dfg", "--output-split-cfuncs", "500")
COMPILER_FLAGS = (
    "-std=gnu++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-w",
    "-DVERILATOR=1",
    "-DVM_COVERAGE=0",
    "-DVM_SC=0",
    "-DVM_TIMING=0",
    "-DVL_USER_FATAL",
    "-DVL_USER_STOP",
    "-DVL_USER_FINISH",
    "-DVL_USER_WARN",
)
# Code of each cycle; code that runs once, or hardly ever. On the whole decoder -O2 is about a tenth faster than -Os and -O1;
# -march=native and -O3 slowed the ternary lanes down, and would bind a cache to one machine.
FAST, ONCE = ("-O2",), ("-O0",)
TRACES = {None: (), "vcd": ("--trace-vcd",), "fst": ("--trace-fst",), "saif": ("--trace-saif",)}
DEFINES = {
    None: ("-DVM_TRACE=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_FST=0"),
    "vcd": ("-DVM_TRACE=1", "-DVM_TRACE_VCD=1", "-DVM_TRACE_FST=0"),
    "fst": ("-DVM_TRACE=1", "-DVM_TRACE_VCD=0", "-DVM_TRACE_FST=1"),
    "saif": ("-DVM_TRACE=1", "-DVM_TRACE_VCD=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_SAIF=1"),
}
RUNTIME = {
    None: ("verilated.cpp", "verilated_threads.cpp"),
    "vcd": ("verilated.cpp", "verilated_threads.cpp", "verilated_vcd_c.cpp"),
    "fst": ("verilated.cpp", "verilated_threads.cpp", "verilated_fst_c.cpp"),
    "saif": ("verilated.cpp", "verilated_threads.cpp", "verilated_saif_c.cpp"),
}
_HERE = Path(__file__).parent
_DEVICE = tuple(_HERE / name for name in ("device.cpp", "memory.h", "faults.h"))
SHIMS = {  # C++ compiled with the model, by the manifest's kind
    "decoder": _DEVICE,
    "prefill-attention": _DEVICE,
    "board": (_HERE / "board.cpp", _HERE / "faults.h"),  # a decoder inside a board
}
LIBRARY = "simulation.so"
ABANDONED = 86400.0  # seconds after which the remains of a killed build are removed


def default_cache() -> Path:
    """The user's cache folder for simulations: ``$XDG_CACHE_HOME/intaglio``, else ``~/.cache/intaglio``."""
    return user_cache()


def build(folder, *, cache=None, trace=None, rom=None, board=None, tools=None, jobs=None, progress=None) -> Path:
    """Return the shared object that simulates the design in a generated folder, building it unless the cache has it.

    Parameters
    ----------
    folder : str or Path
        A generated folder: ``manifest.json`` and the files that it names.
    cache : str or Path or None
        Folder for the results; by default :func:`default_cache`.
    trace : None, "vcd", "fst" or "saif"
        Include support for a waveform file, or for counts of transitions (SAIF); another, slower build. FST needs the headers of
        lz4 and zlib.
    rom : str or Path or None
        Folder from which each simulation reads the ROM images as it starts, for other models of the same shape without another
        build; a relative one is relative to the process's folder at that time. By default a copy inside the cache.
    board : dict or None
        Verilog of a board's top by module name, the top first (:func:`intaglio.gen.emit.link.serial_verilog`): what is built is then the
        board with the design inside, for :mod:`intaglio.sim.verilator.board`.
    tools : Tools or None
    jobs : int or None
        C++ files compiled at a time; by default one for each core.
    progress : callable or None
        Called with a text and the seconds since the beginning, at each step of a build.

    Raises
    ------
    BuildError
    """
    if trace not in TRACES:
        raise ValueError(f"trace must be None, 'vcd', 'fst' or 'saif', not {trace!r}")
    began = time.monotonic()
    source = _Source.read(folder) if board is None else _Source.read(folder).inside(board)
    rom = None if rom is None else str(rom)
    tools = tools or find_tools()
    cache = Path(cache).absolute() if cache else default_cache()
    flags = repr((VERILATOR_FLAGS, LOGIC_FLAGS, COMPILER_FLAGS, FAST, ONCE, TRACES[trace]))
    base = _digest(flags, tools.identity)
    entry = (
        cache
        / f"simulation-{_digest(base, source.digest(rom), *(path.read_bytes() for path in SHIMS[source.kind]))[:32]}"
    )
    if not _complete(entry):
        work = _Work(
            tools=tools,
            trace=trace,
            jobs=jobs or os.cpu_count() or 1,
            tell=lambda text: progress(text, time.monotonic() - began) if progress else None,
        )
        runtime = cache / f"runtime-{base[:32]}"
        try:
            with ThreadPoolExecutor(
                1
            ) as aside:  # Verilator uses one core; meanwhile the run-time library can be compiled
                ready = aside.submit(_publish, runtime, work.compile_runtime) if not _complete(runtime) else None
                _publish(
                    entry, lambda target: work.build_model(source, runtime, ready, target, rom or str(entry / "rom"))
                )
        except OSError as fault:
            raise BuildError(
                f"the simulation cache {cache} cannot be written ({fault}): free space there, or choose another "
                "folder with --cache"
            ) from fault
        work.tell("simulation built")
    return entry / LIBRARY


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A generated folder: its manifest and the contents of its files by their relative paths."""

    kind: str
    top: str
    ports: str
    verilog: dict
    rom: dict
    lint: dict
    logic: bool

    def inside(self, board):
        """The board whose modules ``board`` has, with this design inside."""
        verilog = {f"board/{name}.v": text.encode() for name, text in board.items()}
        return replace(self, kind="board", top=next(iter(board)), ports="", verilog={**self.verilog, **verilog})

    def digest(self, rom):
        """Digest of all that goes into a build; the images count only where no folder ``rom`` replaces them."""
        parts = [self.top, self.ports, rom or ""]
        for group in (self.verilog, {} if rom else self.rom, self.lint):
            for name, data in group.items():
                parts += [name, data]
        return _digest(*parts)

    @classmethod
    def read(cls, folder):
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            groups = {
                kind: {name: (folder / name).read_bytes() for name in manifest["files"].get(kind, [])}
                for kind in ("verilog", "rom", "lint")
            }
            kind, top = manifest["kind"], manifest["top"]
            logic = manifest["config"].get("rom") == "logic"
            if kind not in SHIMS:
                raise BuildError(f"the manifest's kind must be one of {', '.join(SHIMS)}, not {kind!r}")
            ports = _ports(manifest)
        except FileNotFoundError as fault:
            raise BuildError(f"{folder} is not a complete generated folder ({fault}): generate it again") from fault
        except OSError as fault:
            raise BuildError(
                f"{fault.filename or folder} of the generated folder cannot be read: {fault.strerror or fault}"
            ) from fault
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise BuildError(f"{folder / 'manifest.json'} is not a manifest ({fault!r}): generate it again") from fault
        for name in (name for group in groups.values() for name in group):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise BuildError(f"the files of {folder} must be inside it, not {name!r}")
        names = [Path(name).name for name in groups["rom"]]
        if len(set(names)) != len(names):
            raise BuildError("the names of ROM files must differ, whatever their folders")
        return cls(kind=kind, top=top, ports=ports, logic=logic, **groups)


def _ports(manifest):
    """Contents of ports.h, see device.cpp."""
    streams, memory, monitor = manifest["streams"], manifest.get("memory_bus"), manifest.get("monitor")
    result, buses = streams["result"], {"S_AXIL": manifest["register_bus"], "M_AXIS": streams["result"]}
    found = {"CLOCK": manifest["clock"], "RESET": manifest["reset"], "RESULT_BITS": int(result["width"])}
    if result.get("user_width"):
        found["RESULT_USER"] = 1
    if "command" in streams:
        buses["S_AXIS"] = streams["command"]
    if memory:
        buses["M_AXI"], found["BEAT_BYTES"] = memory, memory["data_width"] // 8
    if monitor:
        found["MONITOR"] = monitor["port"]
    found |= {f"{macro}(x)": f"{bus['prefix']}_##x" for macro, bus in buses.items()}
    return "".join(f"#define {macro} {text}\n" for macro, text in found.items())


def _digest(*parts) -> str:
    """SHA-256 in hex of parts, each with its length before it."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(b"%d:" % len(data) + data)
    return state.hexdigest()


def _complete(entry) -> bool:
    """Whether a cache entry has every file as it was when it was built, at the place for which it was built."""
    try:
        seal = json.loads((entry / "seal.json").read_text(encoding="utf-8"))
        return seal["place"] == str(entry) and all(
            _digest((entry / name).read_bytes()) == digest for name, digest in seal["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _publish(entry, fill):
    """Fill a folder beside ``entry``, seal it, and rename it into place; a damaged entry there is replaced."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for old in entry.parent.glob(".build-*"):
        if time.time() - old.stat().st_mtime > ABANDONED:
            shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=entry.parent))
    try:
        target = work / "entry"
        target.mkdir()
        fill(target)
        files = {
            path.relative_to(target).as_posix(): _digest(path.read_bytes())
            for path in sorted(target.rglob("*"))
            if path.is_file()
        }
        (target / "seal.json").write_text(json.dumps({"place": str(entry), "files": files}), encoding="utf-8")
        if entry.exists() and not _complete(entry):
            os.rename(entry, work / "damaged")
        try:
            os.rename(target, entry)
        except OSError:
            if not _complete(entry):  # else another process has just finished the same entry
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The steps of a build."""

    tools: Tools
    trace: str | None
    jobs: int
    tell: object

    def run(self, command, what, cwd=None):
        result = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, **self.tools.environment},
        )
        if result.returncode:
            text = result.stderr + result.stdout
            if "No space left" in text:
                raise OSError(f"no space left while {what}")
            if "lz4.h" in text or "zlib.h" in text:
                raise BuildError(
                    "an FST trace needs the headers of lz4 and zlib (Debian, Ubuntu: apt install liblz4-dev "
                    "zlib1g-dev); a .vcd trace does not"
                )
            lines = [line for line in text.splitlines() if "rror" in line] or text.splitlines()
            raise BuildError(f"{what} failed (exit {result.returncode}): " + "; ".join(lines[:4]))

    def compile(self, sources, target, include):
        """Compile ``(source, flags)`` pairs into ``target``; return the objects in the same order."""
        flags = [
            *COMPILER_FLAGS,
            *DEFINES[self.trace],
            "-I",
            include,
            "-I",
            self.tools.root / "include",
            "-I",
            self.tools.root / "include" / "vltstd",
        ]
        done = []

        def compile_one(source, level):
            made = target / (source.stem + ".o")
            self.run([self.tools.compiler, *level, *flags, "-c", source, "-o", made], f"compiling {source.name}")
            done.append(source)
            self.tell(f"compiled {source.name} ({len(done)} of {len(sources)})")
            return made

        with ThreadPoolExecutor(self.jobs) as pool:
            order = sorted(sources, key=lambda item: -item[0].stat().st_size)
            futures = {source: pool.submit(compile_one, source, level) for source, level in order}
            try:
                return [futures[source].result() for source, _ in sources]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def compile_runtime(self, target):
        self.compile([(self.tools.root / "include" / name, ONCE) for name in RUNTIME[self.trace]], target, target)

    def build_model(self, source, runtime, ready, target, rom):
        """Translate, compile and link into ``target``, images from ``rom``, once the future ``ready`` has made ``runtime``."""
        model = target.parent / "model"
        for name, data in {**source.verilog, **source.lint}.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_bytes(data)
        for name, data in source.rom.items():
            (target / "rom").mkdir(exist_ok=True)
            (target / "rom" / Path(name).name).write_bytes(data)
        place = rom.replace("\\", "\\\\").replace('"', '\\"')
        (model / "rom_dir.v").write_text(f'`define INTAGLIO_ROM_DIR "{place}/"\n', encoding="utf-8")
        (model / "ports.h").write_text(source.ports, encoding="utf-8")
        self.tell("translating Verilog")
        made = model / "cpp"
        self.run(
            [
                self.tools.verilator,
                *VERILATOR_FLAGS,
                *(LOGIC_FLAGS if source.logic else ()),
                *TRACES[self.trace],
                "--top-module",
                source.top,
                "--Mdir",
                made,
                *source.lint,
                "rom_dir.v",
                *source.verilog,
            ],
            "translating Verilog",
            cwd=model,
        )
        for path in SHIMS[source.kind]:
            shutil.copyfile(path, made / path.name)
        shutil.copyfile(model / "ports.h", made / "ports.h")
        files = sorted(made.glob("*.cpp"), key=lambda path: ("__Slow" in path.name, path.name))
        objects = self.compile([(path, ONCE if "__Slow" in path.name else FAST) for path in files], made, made)
        if ready is not None:
            ready.result()
        self.tell("linking")
        self.run(
            [
                self.tools.compiler,
                "-shared",
                "-o",
                target / LIBRARY,
                *objects,
                *(runtime / Path(name).with_suffix(".o") for name in RUNTIME[self.trace]),
                "-lpthread",
                *(("-llz4", "-lz") if self.trace == "fst" else ()),
            ],
            "linking",
        )

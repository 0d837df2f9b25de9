"""Targets, recordings, serial ports and the server, without simulation."""

import errno
import json
import os
import pty
import socket
import threading
import time

import pytest
import serial

import intaglio.host as host
from intaglio import Error
from intaglio.cli import main
from intaglio.host import commands
from intaglio.host import server as server_module
from intaglio.host.device import Device
from intaglio.host.server import Server, is_loopback
from intaglio.host.transport import open_transport, options_of, register
from intaglio.host.transport import serial as serial_module
from intaglio.host.transport.serial import Port, SerialChannel
from intaglio.host.transport.session import LinkLost
from intaglio.host.transport.tcp import address_of
from tests.host.transport.channels import Board


@pytest.fixture
def manifest(double, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(double.describe()))
    return path


@pytest.fixture
def board(double):
    board = Board(double.PythonDevice())
    yield board
    if not board.stop.is_set():
        board.unplug()


@pytest.fixture
def server(double):
    """A server in a thread, with what it told."""
    told, stop = [], threading.Event()
    with Server(double.PythonDevice(), "127.0.0.1:0", tell=told.append) as server:
        server.told = told
        thread = threading.Thread(target=server.run, args=(stop.is_set,), daemon=True)
        thread.start()
        yield server
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


# Targets


def test_options_of_a_target():
    assert options_of("/dev/x?baud=5&manifest=a%20b", {"baud": int, "manifest": str}) == (
        "/dev/x",
        {"baud": 5, "manifest": "a b"},
    )
    for rest, message in (
        ("x?speed=5", "one of baud, not 'speed'"),
        ("x?baud=fast", "of type int, not 'fast'"),
        ("x?baud=1&baud=2", "given once"),
        ("?baud=1", "name a place"),
    ):
        with pytest.raises(ValueError, match=message):
            options_of(rest, {"baud": int})


@pytest.mark.parametrize(
    "text, message", [("7000", "HOST:PORT"), ("host:", "HOST:PORT"), ("h:70000", "0..65535"), (":1", "HOST:PORT")]
)
def test_addresses(text, message):
    with pytest.raises(ValueError, match=message):
        address_of(text)
    assert address_of("[::1]:70") == ("::1", 70)
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost") and not is_loopback("0.0.0.0")


# Serial ports


def test_serial(board, manifest):
    with host.open(f"serial:{board.port}?baud=3000000&manifest={manifest}") as device:
        assert list(device.generate_tokens([5], 20)) == list(range(6, 26))
    with host.open(f"serial:{board.port}", manifest=manifest) as device:
        assert device.evaluate([9])[0].token == 10


def test_a_serial_target_needs_a_manifest(board, double, tmp_path):
    with pytest.raises(ValueError, match="needs the manifest of the board's bitstream: serial:/dev/x.manifest=PATH"):
        host.open("serial:/dev/x?baud=9600")
    with pytest.raises(ValueError, match="baud must be in 300..50,000,000, not 3"):
        host.open(f"serial:{board.port}?baud=3", manifest=_write(tmp_path / "a.json", double.describe()))
    wrong = _write(tmp_path / "b.json", double.describe("ab" * 32))
    with pytest.raises(host.ConfigMismatchError, match="has the digest 0x5e5e5e5e, but its manifest says 0xabababab"):
        host.open(f"serial:{board.port}", manifest=wrong)
    with pytest.raises(ValueError, match="must state a digest"):
        host.open(f"serial:{board.port}", manifest=_write(tmp_path / "c.json", []))
    link = _write(tmp_path / "d.json", {**double.describe(), "link": {"baud": 299}})
    with pytest.raises(ValueError, match="baud must be .*not 299"):
        host.open(f"serial:{board.port}", manifest=link)


def _write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_busy_missing_and_forbidden_ports(board, manifest, monkeypatch):
    held = SerialChannel(board.port, 9600)
    with pytest.raises(host.DeviceError, match="is busy: another program has it open"):
        host.open(f"serial:{board.port}", manifest=manifest)
    held.close()
    with pytest.raises(host.DeviceError, match="there is no serial port /dev/ttyNONE; ports found: .* plugged in"):
        host.open("serial:/dev/ttyNONE", manifest=manifest)
    monkeypatch.setattr(
        serial_module, "ports", lambda: [Port(port="/dev/ttyUSB7", description="", vendor=0x1234, product=0xABCD)]
    )

    def forbid(*_, **__):
        raise serial.SerialException(errno.EACCES, "could not open port /dev/ttyUSB7: [Errno 13] Permission denied")

    def refuse(number):
        def raises(*_, **__):
            raise serial.SerialException(
                number, f"[Errno {number}] could not open port /dev/ttyUSB7: {os.strerror(number)}"
            )

        return raises

    for number in (errno.EISDIR, errno.EIO, errno.ENOTTY):  # what is there, and is no port, is not missing
        monkeypatch.setattr(serial, "Serial", refuse(number))
        with pytest.raises(
            host.DeviceError, match=f"/dev/ttyUSB7 cannot be opened at 1000000 baud: .*{os.strerror(number)}"
        ):
            host.open("serial:/dev/ttyUSB7", manifest=manifest)
    monkeypatch.setattr(serial, "Serial", forbid)
    rule = 'SUBSYSTEM=="tty", ATTRS{idVendor}=="1234", ATTRS{idProduct}=="abcd", TAG.="uaccess" to /etc/udev/rules.d/70-intaglio.rules'
    with pytest.raises(host.DeviceError, match=f"{rule}.*dialout"):
        host.open("serial:/dev/ttyUSB7", manifest=manifest)


def test_pyserial_is_asked_for(monkeypatch, manifest):
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(host.DeviceError.__mro__[1], match=r"pip install 'intaglio\[serial\]'"):
        host.open("serial:/dev/x", manifest=manifest)


def test_unplugged_in_mid_transfer(board, manifest):
    device = host.open(f"serial:{board.port}", manifest=manifest)
    tokens = device.generate_tokens([1], 60)
    assert next(tokens) == 2
    board.unplug()
    began = time.monotonic()
    with pytest.raises(LinkLost, match="has gone .*Plug it in and open it again"):
        list(tokens)
    device.close()
    assert time.monotonic() - began < 5 and device.last["finish"] == "error"


def test_a_chatting_board_is_resynchronised(board, manifest):
    board.mutters = b"U-Boot 2024\r\n\x7e\x7d\x7e" * 50
    with host.open(f"serial:{board.port}", manifest=manifest) as device:
        board.mutters = b"\xff\x7e\x00"
        assert device.evaluate([9])[0].token == 10


def test_devices(double, board, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        serial_module,
        "ports",
        lambda: [
            Port(port=board.port, description="ULX3S", vendor=0x403, product=0x6015),
            Port(port="/dev/ttyNONE", description="", vendor=None, product=None),
        ],
    )
    assert main(["devices"]) == 0
    out = capsys.readouterr()
    assert out.out == f"{board.port}\t0403:6015\tULX3S\n/dev/ttyNONE\t-\t-\n" and "--probe" in out.err
    assert main(["devices", "--probe", "--manifest", str(manifest)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].endswith(f"intaglio device, digest 5e5e5e5e: {manifest} (decoder_double)")
        and "there is no serial port" in lines[1]
    )
    monkeypatch.setattr(serial_module, "PROBE_SECONDS", 0.2)
    master, slave = pty.openpty()
    assert main(["devices", "--port", os.ttyname(slave)]) == 1
    out = capsys.readouterr()
    assert "must answer the beginning of a session" in out.out and "not found: a device at 1 of 1 ports" in out.err
    assert main(["devices", "--port", os.ttyname(slave), "--port", board.port]) == 1
    assert "not found: a device at 1 of 2 ports" in capsys.readouterr().err
    assert main(["devices", "--port", board.port]) == 0 and "not found" not in capsys.readouterr().err
    other = _write(tmp_path / "other.json", double.describe("ab" * 32))
    assert main(["devices", "--probe", "--manifest", str(manifest), "--manifest", str(other)]) == 1
    assert capsys.readouterr().err == f"intaglio: not found: {other} (decoder_double)\n"
    assert (
        main(["devices", "--manifest", str(manifest)]) == 2
        and "--manifest needs --probe or --port" in capsys.readouterr().err
    )
    for descriptor in (master, slave):
        os.close(descriptor)
    monkeypatch.setattr(serial_module, "ports", list)
    assert main(["devices"]) == 0 and capsys.readouterr().out == "no serial ports\n"
    assert main(["devices", "--probe"]) == 1
    assert capsys.readouterr() == ("no serial ports\n", "intaglio: not found: any device\n")


def test_a_converter_that_holds_bytes_back(board, tmp_path, capsys, monkeypatch):
    """The port is asked not to; where that did not help, `devices` says so and what to do."""
    asked = []
    monkeypatch.setattr(serial.Serial, "set_low_latency_mode", lambda self, wanted: asked.append(wanted))
    monkeypatch.setattr(serial_module, "CONVERTERS", tmp_path)
    monkeypatch.setattr(
        serial_module, "ports", lambda: [Port(port=board.port, description="ULX3S", vendor=0x403, product=0x6015)]
    )
    timer = tmp_path / os.path.basename(board.port) / "latency_timer"
    assert main(["devices", "--probe"]) == 0 and asked == [True] and "latency" not in capsys.readouterr().out
    timer.parent.mkdir()
    timer.write_text("1\n")
    assert main(["devices", "--probe"]) == 0 and "latency" not in capsys.readouterr().out
    timer.write_text("16\n")
    for fault in (ValueError, OSError):
        monkeypatch.setattr(
            serial.Serial, "set_low_latency_mode", lambda self, wanted, fault=fault: (_ for _ in ()).throw(fault())
        )
        assert main(["devices", "--probe"]) == 0
        assert (
            f"latency timer could not be set, answers wait for up to 16 ms: `echo 1 | sudo tee {timer}`"
            in capsys.readouterr().out
        )
    monkeypatch.delattr(serial.Serial, "set_low_latency_mode")
    monkeypatch.setattr(serial_module.sys, "platform", "darwin")
    assert (
        main(["devices", "--probe"]) == 0 and "set it to 1 ms in the settings of its driver" in capsys.readouterr().out
    )


# TCP


def test_tcp(server):
    for _ in range(2):
        with host.open(f"tcp:{server.address}") as device:
            assert device.manifest.digest == "5e" * 32
            assert list(device.generate_tokens([5], 20)) == list(range(6, 26))
            results = device.evaluate(range(60), every=True, top=16)
            assert [r.position for r in results] == list(range(60))
    assert server.told[0].startswith("client 127.0.0.1:") and "has gone" in server.told[1]


def test_a_second_client_is_refused(server):
    with host.open(f"tcp:{server.address}") as device:
        with pytest.raises(host.DeviceError, match="is in use by 127.0.0.1:.*only one client"):
            host.open(f"tcp:{server.address}")
        assert device.evaluate([9])[0].token == 10
    with host.open(f"tcp:{server.address}") as device:
        assert device.evaluate([9])[0].token == 10


def test_clients_that_vanish_or_talk_nonsense(server):
    device = host.open(f"tcp:{server.address}")
    device.submit([1 << 31 | 1 << 30 | 20 << 16])
    device.transport.channel._socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )  # end with a reset
    device.close()
    with socket.create_connection(address_of(server.address)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n~~~~" + bytes(range(256)) * 10)
        time.sleep(0.2)
    began = time.monotonic()
    with host.open(f"tcp:{server.address}") as device:
        assert device.evaluate([9])[0].token == 10
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("noise", [b"", b"~~~~ no frame"])
def test_a_client_that_begins_no_session_frees_the_device(server, monkeypatch, noise):
    monkeypatch.setattr(server_module, "SILENT_SECONDS", 0.3)
    with socket.create_connection(address_of(server.address)) as silent:
        silent.sendall(noise)
        with pytest.raises(host.DeviceError, match="in use by"):
            host.open(f"tcp:{server.address}")
        end = time.monotonic() + 5
        while len(server.told) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert server.told[1].endswith("has gone: it began no session within 0.3 s")
        with host.open(f"tcp:{server.address}") as device:  # one with a session may be silent
            time.sleep(0.6)
            assert device.evaluate([9])[0].token == 10


def test_an_address_in_use_is_told_before_a_device_is_opened(server, python_scheme, capsys, monkeypatch):
    monkeypatch.setattr("intaglio.host.transport.open_transport", lambda *_, **__: pytest.fail("opened"))
    assert main(["serve", "--device", python_scheme, "--listen", server.address]) == 2
    assert f"must be free and this computer's, not {server.address}: Address already in use" in capsys.readouterr().err


def test_a_server_that_ends_is_told(double):
    stop = threading.Event()
    server = Server(double.PythonDevice(), "127.0.0.1:0")
    thread = threading.Thread(target=server.run, args=(stop.is_set,), daemon=True)
    thread.start()
    device = host.open(f"tcp:{server.address}")
    stop.set()
    thread.join(10)
    server.close()
    with device, pytest.raises(LinkLost, match="(closed by the other side|has ended)"):
        device.read_register("status")
    with pytest.raises(host.DeviceError, match="no connection to .*is `intaglio serve` running there"):
        host.open(f"tcp:{server.address}")


@pytest.mark.parametrize(
    "greeting, message",
    [
        (b"SSH-2.0-OpenSSH\n", "must greet as an intaglio server, not with b'SSH"),
        (b'{"intaglio": 2}\n', "version 1 of the greeting, not 2"),
        (b'{"intaglio": 1, "manifest": 5}\n', "must have a manifest"),
        (b"", "closed by the other side"),
        (b"[]\n", "must greet"),
    ],
)
def test_other_servers(greeting, message):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            connection.sendall(greeting)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(host.DeviceError, match=message):
            host.open(f"tcp:127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)


def test_another_manifest_than_the_servers(server, double, tmp_path, manifest):
    wrong = _write(tmp_path / "wrong.json", double.describe("ab" * 32))
    with pytest.raises(host.ConfigMismatchError, match="has the digest 5e5e.*but the manifest .* says abab"):
        host.open(f"tcp:{server.address}", manifest=wrong)
    with host.open(f"tcp:{server.address}", manifest=manifest) as device:
        assert device.evaluate([9])[0].token == 10


def test_serve_says_who_can_reach_it(python_scheme, capsys, monkeypatch):
    monkeypatch.setattr(Server, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["serve", "--device", python_scheme, "--listen", "127.0.0.1:0"]) == 130
    assert "this computer only" in capsys.readouterr().err
    assert main(["serve", "--device", python_scheme, "--listen", "0.0.0.0:0"]) == 130
    assert "WARNING: anyone who can reach this address" in capsys.readouterr().err
    assert main(["serve", "--device", python_scheme, "--listen", "0"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err
    assert commands  # the entry points name this module


# Recordings


def test_record_and_replay(python_scheme, tmp_path):
    path = tmp_path / "run.jsonl"

    def use(device):
        out = [list(device.generate_tokens([5], 20)), [r.token for r in device.evaluate(range(9), every=True, top=3)]]
        device.reset()
        return [*out, device.counters()]

    with host.open(f"record:{path}?target={python_scheme}") as device:
        expected = use(device)
    with host.open(f"replay:{path}") as device:
        assert use(device) == expected and device.info["digest"] == "5e" * 32
        with pytest.raises(host.DeviceError, match="ends after .* calls, and the next one is read offset=16"):
            device.read_register("status")
    with (
        host.open(f"replay:{path}") as device,
        pytest.raises(host.DeviceError, match="is write offset=24 written=1, not send words=c"),
    ):
        device.evaluate([5])


def test_faults_are_recorded(double, tmp_path):
    path = tmp_path / "run.jsonl"

    class Lost(double.PythonDevice):
        def read_register(self, offset):
            if offset == 0x10:
                raise LinkLost("it has gone")
            return super().read_register(offset)

    register("lost", lambda rest, **_: Lost())
    for target in (f"record:{path}?target=lost:x", f"replay:{path}"):
        with host.open(target) as device, pytest.raises(LinkLost, match="it has gone"):
            device.read_register("status")
    register("lost", None)


def test_recordings_that_are_none(tmp_path, python_scheme):
    for rest in ("x", "?target=sim:x", "x?target="):
        with pytest.raises(ValueError, match="record:FILE.target=SCHEME:REST"):
            open_transport(f"record:{rest}")
    with pytest.raises(Error, match="a recording must name a file that can be written, not .*: No such file"):
        open_transport(f"record:{tmp_path}/no/file?target={python_scheme}")
    with pytest.raises(host.DeviceError, match="cannot be read: No such file"):
        open_transport(f"replay:{tmp_path}/none")
    for text in ("", "[]\n", "{}\n", "nonsense\n", '{"format": "intaglio-recording", "format_version": 2}\n'):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(host.DeviceError, match="is not a recording"):
            open_transport(f"replay:{tmp_path}/bad")
    with pytest.raises(ValueError, match="takes no manifest"):
        open_transport(f"replay:{tmp_path}/bad", manifest="x")


def test_a_recording_cut_short_is_used_as_far_as_it_goes(python_scheme, tmp_path):
    path = tmp_path / "run.jsonl"
    with host.open(f"record:{path}?target={python_scheme}") as device:
        device.evaluate([5])
    path.write_bytes(path.read_bytes()[:-3])
    replay = open_transport(f"replay:{path}")
    device = Device(replay)
    with pytest.raises(host.DeviceError, match="ends after 5 calls"):
        device.evaluate([5])

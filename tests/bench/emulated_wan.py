"""Two network namespaces with a wide-area link between them, for programs that cannot be put behind wukong's relay.

A packet relay in user space joins a TUN device in each: it paces packets at the bandwidth and delivers them one way later, so
what crosses the link is the programs' own TCP. Needs root, iproute2 and /dev/net/tun; netem is not needed.
"""
import collections
import ctypes
import errno
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time

SIDES = ("a", "b")
MTU = 9000  # Fewer packets for the relay than with 1,500; TCP's behaviour over the link is otherwise the same.
QUEUE_BYTES_MAX = 8 << 20  # Waiting for bandwidth, per direction; more is dropped, as a router does.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000


class Direction:
    """Packets on their way through one direction of the link."""

    def __init__(self, to, delay, bits_per_second):
        self.to, self.delay, self.bits_per_second = to, delay, bits_per_second
        self.free_at = 0.0
        self.packets = collections.deque()  # (arrival, packet), in order of arrival.

    def send(self, packet, now):
        start = max(now, self.free_at)
        if (start - now) * self.bits_per_second / 8 > QUEUE_BYTES_MAX:
            return
        self.free_at = start + len(packet) * 8 / self.bits_per_second
        self.packets.append((self.free_at + self.delay, packet))

    def deliver(self, now):
        while self.packets and self.packets[0][0] <= now:
            packet = self.packets.popleft()[1]
            try:
                os.write(self.to, packet)
            except OSError as problem:
                if problem.errno != errno.EIO:  # The other device is not up yet, and this one said something of its own.
                    raise


def open_tun(namespace):
    """Moves this thread into `namespace` and makes tun0 there; the descriptor works from everywhere afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    return tun


def relay(namespaces, delay, bits_per_second):
    tuns = [open_tun(namespace) for namespace in namespaces]
    directions = {tuns[0]: Direction(tuns[1], delay, bits_per_second), tuns[1]: Direction(tuns[0], delay, bits_per_second)}
    poll = select.epoll()
    for tun in tuns:
        poll.register(tun, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        next_arrivals = [d.packets[0][0] for d in directions.values() if d.packets]
        timeout = max(0.0, min(next_arrivals) - time.monotonic()) if next_arrivals else -1
        for tun, _ in poll.poll(timeout):
            try:
                for _ in range(64):
                    directions[tun].send(os.read(tun, 65536), time.monotonic())
            except BlockingIOError:
                pass
        now = time.monotonic()
        for direction in directions.values():
            direction.deliver(now)


class Wan:
    """The link while it lives, as a context manager. `rtt` in seconds."""

    def __init__(self, rtt, bits_per_second):
        if os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or shutil.which("ip") is None:
            sys.exit("emulated_wan: expected root, /dev/net/tun and the command ip (package iproute2) for network namespaces; "
                     "run as root on a machine that has them")
        self.namespaces = [f"wukong-{os.getpid()}-{side}" for side in SIDES]
        self.addresses = ["10.231.0.1", "10.231.0.2"]  # Inside the namespaces only.
        self.rtt, self.bits_per_second = rtt, bits_per_second
        self.relay = None

    def __enter__(self):
        try:
            for namespace in self.namespaces:
                self._ip("netns", "add", namespace)
            self.relay = subprocess.Popen([sys.executable, os.path.abspath(__file__), *self.namespaces, str(self.rtt / 2),
                                           str(self.bits_per_second)], stdout=subprocess.PIPE, text=True)
            if self.relay.stdout.readline().strip() != "ready":
                sys.exit("emulated_wan: the packet relay did not start; its error is above")
            for namespace, address, peer in zip(self.namespaces, self.addresses, reversed(self.addresses)):
                self._ip("-n", namespace, "link", "set", "lo", "up")
                self._ip("-n", namespace, "addr", "add", address, "peer", peer, "dev", "tun0")
                self._ip("-n", namespace, "link", "set", "tun0", "mtu", str(MTU), "up")
                for setting in ("net.ipv4.tcp_rmem=4096 1048576 33554432", "net.ipv4.tcp_wmem=4096 1048576 33554432",
                                "net.ipv4.tcp_slow_start_after_idle=0"):
                    name, value = setting.split("=")
                    path = "/proc/sys/" + name.replace(".", "/")
                    subprocess.run(self.inside(namespace, ["sh", "-c", f"echo {value} > {path}"]), check=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.relay is not None:
            self.relay.send_signal(signal.SIGKILL)
            self.relay.wait()
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL)

    @staticmethod
    def inside(namespace, command):
        return ["ip", "netns", "exec", namespace] + command

    def measure(self, size=25_000_000):
        """Round-trip time in seconds (the shortest of three connects) and bits per second of one TCP connection across."""
        server = subprocess.Popen(self.inside(self.namespaces[0], [sys.executable, "-c", SERVER, self.addresses[0]]),
                                  stdout=subprocess.PIPE, text=True)
        try:
            port = server.stdout.readline().strip()
            client = subprocess.run(self.inside(self.namespaces[1], [sys.executable, "-c", CLIENT, self.addresses[0], port,
                                                                     str(size)]), stdout=subprocess.PIPE, text=True, check=True)
            rtt, rate = client.stdout.split()
            return float(rtt), float(rate)
        finally:
            server.kill()
            server.wait()

    @staticmethod
    def _ip(*arguments):
        done = subprocess.run(["ip", *arguments], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"emulated_wan: ip {' '.join(arguments)}: {done.stderr.strip()}; does this kernel allow network namespaces?")


SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection = listener.accept()[0]
    while connection.recv(1 << 20): pass
    try: connection.sendall(b"x")
    except OSError: pass
"""
CLIENT = """
import socket, sys, time
rtts = []
for _ in range(4):
    begin = time.monotonic()
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    rtts.append(time.monotonic() - begin)
    connection.close() if len(rtts) < 4 else None
begin = time.monotonic()
connection.sendall(bytes(int(sys.argv[3])))
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
print(min(rtts), 8 * int(sys.argv[3]) / (time.monotonic() - begin))
"""

if __name__ == "__main__":
    relay(sys.argv[1:3], float(sys.argv[3]), float(sys.argv[4]))

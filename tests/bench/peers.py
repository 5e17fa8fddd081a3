"""What the comparisons with other systems share: their interpreter, and the tables that they print."""
import ctypes
import math
import os
import platform
import statistics
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# What our workers ask of libtorch and the C library (runtime/model/compute_process.h), as far as an environment can say it.
TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824"
                      ":glibc.malloc.top_pad=67108864",
}
with open("/proc/cpuinfo", encoding="utf-8") as cpu:
    if "avx512_vbmi2" in cpu.read():
        TUNED["ATEN_CPU_CAPABILITY"] = "avx512"
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # The number of the system call: glibc 2.36 has no function for it.


def take_long_time_slices():
    """For the calling thread the time slices of 100 ms that our workers ask for, which an environment cannot say. Threads that it
    makes later are as others are. Whether the kernel took it; before Linux 6.12 it changes nothing."""
    number = SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    # struct sched_attr: size, policy, flags (reset on fork), nice, priority, runtime in ns, deadline, period.
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 1, os.getpriority(os.PRIO_PROCESS, 0), 0, 100_000_000, 0, 0)
    return ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0) == 0


def student_t(degrees, share=0.975):
    """The quantile of Student's t: for 0.975 that of a two-sided interval of 95%. By bisection of its distribution, which is a finite
    sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    def within(t):  # The probability of -t to t.
        angle = math.atan(t / math.sqrt(degrees))
        odd = degrees % 2
        term, total = (math.cos(angle) if odd else 1.0), 0.0
        for k in range(2 + odd, degrees + 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (k - 1) / k
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * share - 1 else (low, middle)
    return high


def say(text):
    print(text, file=sys.stderr, flush=True)


def torch_python(wanted=None):
    """A Python that has PyTorch: `wanted`, this one, or Debian's. Ends the program with what to do where there is none."""
    candidates = [wanted] if wanted else [sys.executable, "/usr/bin/python3"]
    for python in candidates:
        try:
            done = subprocess.run([python, "-c", "import torch"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:
            continue
        if done.returncode == 0:
            return python
    sys.exit(f"{os.path.basename(sys.argv[0])}: none of {', '.join(candidates)} can import torch; "
             "run launch/install_packages bench, or name another interpreter with --python")


def need(path, target):
    if not os.path.exists(path):
        sys.exit(f"{os.path.basename(sys.argv[0])}: {path} is not there: cmake --preset release && "
                 f"cmake --build --preset release --target {target}")


def markdown(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def spread(values, form="{:.2f}"):
    """Median, and the smallest and largest in brackets."""
    values = [value for value in values if value is not None and not math.isnan(value)]
    if not values:
        return "never"
    median = form.format(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({form.format(min(values))} to {form.format(max(values))})"


def machine():
    """One line on how busy the machine is: others' work is in every figure."""
    return f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"

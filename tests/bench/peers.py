"""What the comparisons with other systems share: their interpreter, and the tables that they print."""
import math
import os
import statistics
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

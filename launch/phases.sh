# shellcheck shell=bash disable=SC2154
# Sourced by quickstart, tests/run and .ci/run: runs one phase after the other, with its time and one log. The caller
# sets `root` (the checkout) and `log` (a file), and works under `set -euo pipefail`.

# ccache takes what another checkout has compiled: paths below the root count relative to it.
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1

# Compilers that may run at once: one per core, but a file that includes libtorch takes 1.2 GB.
build_jobs() {
  local jobs memory_kb limit
  jobs=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo 2>/dev/null || true)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || true)
  if [[ "$limit" =~ ^[0-9]+$ ]] && ((limit / 1024 < ${memory_kb:-0})); then memory_kb=$((limit / 1024)); fi
  if [[ "$memory_kb" =~ ^[0-9]+$ ]] && ((memory_kb / 1300000 < jobs)); then jobs=$((memory_kb / 1300000)); fi
  echo $((jobs > 0 ? jobs : 1))
}

ticker=
stop_ticker() {
  if [[ -n "$ticker" ]]; then
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    ticker=
  fi
}
trap stop_ticker EXIT

# phase NAME COMMAND...: runs the command in the foreground, so that Ctrl-C reaches it, with its output in $log. One line
# says how long it took; on a terminal it counts while the command runs. On failure: the end of the output, and exit.
phase() {
  local name=$1 start=$SECONDS from status=0
  shift
  from=$(($(wc -l <"$log") + 1))
  if [[ -t 1 ]]; then
    (
      while true; do
        printf '\r%-44s %4d s ' "$name" $((SECONDS - start))
        sleep 1
      done
    ) &
    ticker=$!
  fi
  printf '== %s\n' "$name" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null || status=$?
  stop_ticker
  if [[ -t 1 ]]; then printf '\r'; fi
  local verdict=''
  if ((interrupted)); then verdict='  interrupted'; elif ((status != 0)); then verdict='  failed'; fi
  printf '%-44s %4d s%s\n' "$name" $((SECONDS - start)) "$verdict"
  if ((interrupted)); then exit 130; fi
  if ((status == 0)); then return; fi
  tail -n "+$from" "$log" | tail -n 40 >&2
  echo "${0##*/}: phase '$name' failed with exit code $status; all of its output is in $log" >&2
  exit 1
}
interrupted=0
trap 'interrupted=1' INT

# configure PRESET; build PRESET TARGET...: the presets of CMakePresets.json.
configure() { (cd "$root" && cmake --preset "$1"); }
build() {
  local preset=$1
  shift
  cmake --build "$root/build/$preset" -j "$(build_jobs)" --target "$@"
}

# The dictionary's text as tokens, in data/gcide. Of dict-gcide 0.48.5, unpacked: 39,952,321 bytes.
prepare_text() {
  "$root/build/release/wukong" data prepare --tokenizer byte --input /usr/share/dictd/gcide.dict.dz \
    --sha256 802beb667e1fb666203e750f1faea60d5c202ac5430c2083c4180494609f10a7 --output "$root/data/gcide"
}

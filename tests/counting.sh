# Adds up what suites say of themselves: cargo's `test result:` lines, and our own `N passed, N failed, N skipped`.

PASSED=0 FAILED=0 SKIPPED=0 SKIPS=

# Runs a suite (a command), shows its output, and adds its figures.
count_suite() {
  local log status=0
  log=$(mktemp)
  "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  local passed failed skipped own
  own=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -1)
  if [[ -n $own ]]; then
    read -r passed failed skipped < <(tr -dc '0-9 \n' <<<"$own")
  else
    skipped=$(grep -c 'SKIPPED:' "$log")
    passed=$(($(cargo_count "$log" passed) - skipped))
    skipped=$((skipped + $(cargo_count "$log" ignored)))
    failed=$(cargo_count "$log" failed)
  fi
  SKIPS+=$(grep -h 'SKIPPED:' "$log" | sort -u | sed 's/$/\n/')
  rm -f "$log"
  # One that ended badly and counted no failure has failed as a whole.
  if ((status)) && ((${failed:-0} == 0)); then failed=1; fi
  PASSED=$((PASSED + ${passed:-0})) FAILED=$((FAILED + ${failed:-0})) SKIPPED=$((SKIPPED + ${skipped:-0}))
}

cargo_count() { grep -E '^test result:' "$1" | sed -nE "s/.* ([0-9]+) $2.*/\1/p" | awk '{n += $1} END {print n + 0}'; }

# A whole suite that cannot run here: loud, and in CI a failure.
skip_suite() {
  echo "SKIPPED: $1: $2"
  SKIPS+="SKIPPED: $1: $2"$'\n'
  if [[ ${CI:-} == true ]]; then FAILED=$((FAILED + 1)); else SKIPPED=$((SKIPPED + 1)); fi
}

# The last line, and the exit code.
summary() {
  [[ -z $SKIPS ]] || printf '%s' "$SKIPS" | sort -u
  echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
  ((FAILED == 0))
}

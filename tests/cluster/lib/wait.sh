# Bounded waits and progress lines. Sourced, never run.
# shellcheck shell=bash

STARTED=${EPOCHREALTIME/[.,]/}

# A progress line with the seconds since the command began.
say() {
  local tenths=$(((${EPOCHREALTIME/[.,]/} - STARTED) / 100000))
  printf 'cluster: %4d.%ds  %s\n' $((tenths / 10)) $((tenths % 10)) "$*" >&2
}

# Waits at most SECONDS for COMMAND… to succeed.
wait_quietly() {
  local deadline=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
  shift
  until "$@"; do
    ((${EPOCHREALTIME/[.,]/} < deadline)) || return 1
    sleep 0.1
  done
}

# The same, and says what was waited for in vain: SECONDS WHAT COMMAND…
wait_until() {
  local seconds=$1 what=$2
  shift 2
  wait_quietly "$seconds" "$@" && return
  echo "cluster: waited ${seconds}s in vain for $what" >&2
  return 1
}

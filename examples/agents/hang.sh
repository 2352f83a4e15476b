#!/bin/sh
# Never answers, and ignores a polite SIGTERM: its turn ends by its deadline.
trap '' TERM
while :; do sleep 1; done

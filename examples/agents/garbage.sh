#!/bin/sh
# Prints random bytes: what is no UTF-8 becomes U+FFFD.
exec head -c 4096 /dev/urandom

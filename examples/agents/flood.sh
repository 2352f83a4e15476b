#!/bin/sh
# Prints without end: its turn fails when the output is too long.
exec yes "and another thing"

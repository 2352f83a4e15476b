#!/bin/sh
# Says half a sentence and dies.
printf 'The answer is '
echo 'segmentation fault in the answer unit' >&2
kill -SEGV $$

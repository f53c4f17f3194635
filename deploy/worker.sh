#!/bin/sh
# A worker of one pool, as launchd and systemd start it:
#
#     deploy/worker.sh POOL [FILE]
#
# FILE (~/.config/hft2ane/worker.env) is shell: lines NAME='value', HF_TOKEN and the server's password among them. So
# it must be the user's alone, which is checked. On a Mac the system stays awake as long as the worker runs.
set -eu

pool=${1:?"which pool? deploy/worker.sh apple-silicon"}
file=${2:-$HOME/.config/hft2ane/worker.env}
cd "$(dirname "$0")/.."

if ! [ -r "$file" ]; then
    echo "worker.sh: there is no $file to read; docs/operate.md says what goes into it" >&2
    exit 78
fi
if [ -n "$(find -L "$file" -prune \( -perm -040 -o -perm -004 \))" ]; then
    echo "worker.sh: others may read $file, which holds secrets: chmod 600 $file" >&2
    exit 78
fi
case $file in
    */*) ;;
    *) file=./$file ;; # `.` looks for a bare name along PATH
esac
set -a
# shellcheck source=/dev/null
. "$file"
set +a
# Seconds between looks for work. With Prefect's 10 a machine waits for 5 before each job.
export PREFECT_WORKER_QUERY_SECONDS="${PREFECT_WORKER_QUERY_SECONDS:-2}"

if command -v caffeinate >/dev/null; then
    caffeinate -i -m -s -w $$ & # $$ is the worker's own number after `exec`
fi
exec .venv/bin/prefect worker start --pool "$pool" --name "$(hostname -s)" --limit 1

#!/bin/sh
# deb and rpm, after removal and purge. Configuration and data are evidence: neither takes them away. The user stays as
# long as files are its own, so that no later user inherits them.
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ "$1" = purge ]; then
    for folder in /etc/vedette /var/lib/vedette; do
        [ ! -d $folder ] || rmdir --ignore-fail-on-non-empty $folder
    done
    if [ ! -d /etc/vedette ] && [ ! -d /var/lib/vedette ] && getent passwd vedette > /dev/null; then
        userdel vedette
    fi
fi

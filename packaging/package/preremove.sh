#!/bin/sh
# deb and rpm, before removal; at an upgrade the daemon goes on until the new version is in place.
set -e
case "$1" in
    remove | 0)
        if [ -d /run/systemd/system ]; then
            systemctl stop vedette.service
        fi
        if command -v systemctl > /dev/null; then
            systemctl --no-reload disable vedette.service
        fi
        ;;
esac

#!/bin/sh
# deb and rpm, after installation and upgrade. Nothing starts before somebody has made a configuration.
set -e
if command -v systemd-sysusers > /dev/null; then
    systemd-sysusers vedette.conf
elif ! getent passwd vedette > /dev/null; then
    useradd --system --user-group --home-dir /var/lib/vedette --shell /usr/sbin/nologin vedette
fi
[ -d /etc/vedette ] || install -d -m 0750 -g vedette /etc/vedette
[ -d /var/lib/vedette ] || install -d -m 0700 -o vedette -g vedette /var/lib/vedette
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    act=systemctl
    command -v deb-systemd-invoke > /dev/null && act=deb-systemd-invoke # heeds policy-rc.d
    $act try-restart vedette.service || echo "vedette did not start again: journalctl -u vedette says why" >&2
fi

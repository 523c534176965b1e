#!/bin/sh
# What the tests use beside Python: PulseAudio, on whose virtual microphone capture is tested; Chromium, which shows the page of a report;
# jq and Node, which run the examples. There already, or installed with apt-get where we may. Without one its tests are skipped, visibly.
. "$(dirname "$0")/apt.sh"
missing=""
pulse() { command -v pulseaudio >/dev/null && command -v paplay >/dev/null && ls /usr/lib/*/alsa-lib/libasound_module_pcm_pulse.so >/dev/null 2>&1; }
pulse || missing="$missing pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing="$missing chromium"
command -v jq >/dev/null || missing="$missing jq"
command -v node >/dev/null || missing="$missing nodejs"
[ -z "$missing" ] && exit 0
# shellcheck disable=SC2086 -- words
apt_install $missing && exit 0
echo "some tests will be skipped; for all of them install: apt-get install$missing"

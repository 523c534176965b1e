#!/bin/sh
# PulseAudio, on whose virtual microphone the capture tests run: there already, or installed with apt-get where we may.
# Without it those tests are skipped, visibly.
command -v pulseaudio >/dev/null && command -v paplay >/dev/null && ls /usr/lib/*/alsa-lib/libasound_module_pcm_pulse.so >/dev/null 2>&1 && exit 0
. "$(dirname "$0")/apt.sh"
apt_install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2 && exit 0
echo "PulseAudio is missing: the microphone tests will be skipped. Install it: apt-get install pulseaudio pulseaudio-utils" \
	"libasound2-plugins libportaudio2"

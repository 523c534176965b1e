#!/bin/sh
# PortAudio, which the microphone needs: there already, installed with apt-get where we may, or a line that says what to do.
# The service runs on files and stdin without it, so this never fails.
"${VENV_PYTHON:-.venv/bin/python}" -c 'import sounddevice' 2>/dev/null && exit 0
. "$(dirname "$0")/apt.sh"
apt_install libportaudio2 libasound2-plugins && exit 0
echo "PortAudio is missing: files and stdin work, the microphone does not. Install it: apt-get install libportaudio2 (Debian, Ubuntu)," \
	"dnf install portaudio (Fedora), brew install portaudio (macOS)."

# Sourced: apt_install PACKAGE... installs Debian packages where there is apt-get and we are root, or may be without a password.
apt_install() {
	command -v apt-get >/dev/null || return 1
	if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo -n"; else return 1; fi
	{ $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null
}

#!/bin/sh
# Questions that jq answers about the service's events, recorded or as they come:
#
#   .venv/bin/python asr_service_streaming.py --embedded | examples/jq.sh follow
#   examples/jq.sh uncertain < asr_output.jsonl
#
# A line of the input that is no JSON object, for instance the last line of a service that was killed, is skipped.
set -eu

usage() {
	cat <<'USAGE'
usage: jq.sh QUESTION < EVENTS
  finals      the text of each utterance
  follow      partials (…), finals (=) and errors (!) as they come
  errors      time, code, whether the service goes on, and message of each error
  lost        how many ms of audio were lost inside utterances
  emotions    how many utterances have which emotion
  uncertain   tokens with a confidence below 0.6: start in ms, confidence, token, sentence
USAGE
}

events='
	def events: inputs | fromjson? | objects;
	def finals: events | select(.type == "voice.asr_text.final");
	def errors: events | select(.type == "core.error_event");
	def time: .ts / 1000 | floor | strflocaltime("%F %T");
'

# ask PROGRAM: each line of output is written at once, so that a pipe shows it while the service runs.
ask() {
	exec jq -n -R -r --unbuffered "$events $1"
}

case $#,${1-} in
1,finals | 1,follow | 1,errors | 1,lost | 1,emotions | 1,uncertain) ;;
1,-h | 1,--help) usage && exit ;;
*) usage >&2 && exit 2 ;;
esac
command -v jq >/dev/null || {
	echo "jq.sh: jq is missing; install it: apt-get install jq, dnf install jq or brew install jq" >&2
	exit 2
}

# shellcheck disable=SC2016  # $names inside are those of jq
case $1 in
finals) ask 'finals | .text' ;;
follow)
	ask '
		events
		| if .type == "voice.asr_text.partial" then "… " + .text
		  elif .type == "voice.asr_text.final" then "= " + .text
		  elif .type == "core.error_event" then "! " + .message
		  else empty end'
	;;
errors) ask 'errors | [time, .error_code, if .recoverable then "goes on" else "ends" end, .message] | @tsv' ;;
lost) ask 'reduce (finals | .lost_ms) as $ms (0; . + $ms)' ;;
emotions)
	# The emotion of an utterance is in its final, in an event of its own that follows, or in both; trace_id tells utterances apart.
	ask '
		reduce events as $event ({};
			if $event.type == "voice.asr_text.final" then .[$event.trace_id] = ($event.emotion.label // "none")
			elif $event.type == "voice.asr_text.emotion" then .[$event.trace_id] = $event.label
			else . end)
		| to_entries | group_by(.value) | sort_by(-length)[] | "\(length)\t\(.[0].value)"'
	;;
uncertain) ask 'finals | .raw_text as $sentence | .tokens[] | select(.confidence < 0.6) | [.start_ms, .confidence, .text, $sentence] | @tsv' ;;
esac

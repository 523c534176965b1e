// Generated from config/events.schema.json by tools/event_types.py; docs/events.md says what the keys mean.

export interface AudioLevel {
  /** Root mean square in dB relative to full scale; silence is -120. */
  rms_dbfs: number;
  /** Largest sample in dB relative to full scale. */
  peak_dbfs: number;
  /** Share of samples at full scale: above 0.01 speech is distorted. */
  clipped_ratio: number;
}

export interface EmotionEvent {
  type: "voice.asr_text.emotion";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: string;
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  label: "angry" | "disgusted" | "fearful" | "happy" | "neutral" | "other" | "sad" | "surprised" | "unknown";
  /** Score of label. */
  confidence: number;
  /** All nine labels; a label the model lacks scores 0. */
  scores: Partial<Record<"angry" | "disgusted" | "fearful" | "happy" | "neutral" | "other" | "sad" | "surprised" | "unknown", number>>;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  start_ms: number;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  end_ms: number;
}

export interface EmotionSummary {
  label: "angry" | "disgusted" | "fearful" | "happy" | "neutral" | "other" | "sad" | "surprised" | "unknown";
  confidence: number;
}

export interface ErrorEvent {
  type: "core.error_event";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  error_code: "audio_device_unavailable" | "audio_device_lost" | "audio_stalled" | "audio_overrun" | "audio_silent" | "audio_clipping" | "input_unreadable" | "infer_partial_failed" | "infer_final_failed" | "vad_failed" | "emotion_failed" | "speaker_failed" | "punctuation_failed" | "hotword_repair_failed" | "number_format_failed" | "second_pass_failed" | "engine_unavailable" | "model_load_failed" | "config_invalid" | "control_invalid" | "record_failed" | "runtime_error";
  /** 'Type: text'; never a traceback. */
  message: string;
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** true: the service goes on. */
  recoverable: boolean;
}

export interface FinalEvent {
  type: "voice.asr_text.final";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: string;
  /** What to show: raw_text with punctuation and, where configured, numbers, repairs, second pass. */
  text: string;
  /** Mean posterior of the tokens; 0 where there is none; null where source is funasr.remote. */
  confidence: number | null;
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** First speech sample as decided, without pre-roll. */
  start_ms: number;
  /** After the last speech sample as decided, without trailing silence. */
  end_ms: number;
  /** Why the utterance ended. */
  endpoint: "silence" | "max_duration" | "requested" | "muted" | "end_of_input" | "shutdown" | "audio_lost";
  /** Recognised text before punctuation and repairs. */
  raw_text: string;
  /** Tokens of raw_text with times and posteriors. */
  tokens: (TokenTime)[];
  /** null: off, too short, too uncertain, failed, or not ready in time. */
  emotion: EmotionSummary | null;
  /** Audio lost inside this utterance; 0 means nothing was lost. */
  lost_ms: number;
  /** Of the speech. */
  level: AudioLevel;
  /** Wall clock when the sample at end_ms was captured, of a file or stdin when it was read; ms since the epoch. */
  captured_ts: number;
  /** Only with --speakers. null: too short, too uncertain, failed, or not ready in time. */
  speaker?: SpeakerSummary | null;
}

export interface LevelEvent {
  type: "core.level_event";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** The audio until here was measured, from the level event before on. */
  end_ms: number;
  /** true: the audio is not recognised, by command; then no level is told. */
  muted: boolean;
  /** null while muted. */
  level: AudioLevel | null;
}

export interface PartialEvent {
  type: "voice.asr_text.partial";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: string;
  /** What to show. */
  text: string;
  /** Mean posterior of the tokens of raw_text; null where source is funasr.remote. */
  confidence: number | null;
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** First speech sample of the utterance. */
  start_ms: number;
  /** The audio decoded so far. */
  end_ms: number;
  /** Leading code points of raw_text that begin raw_text of each later partial and of the final, too. */
  stable_chars: number;
  /** Recognised text before punctuation and repairs; equal to text in partials. */
  raw_text: string;
  /** Wall clock when the sample at end_ms was captured, of a file or stdin when it was read; ms since the epoch. */
  captured_ts: number;
}

export interface SpeakerEvent {
  type: "voice.asr_text.speaker";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: string;
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** One for each voice, the same for the life of the process. */
  label: string;
  /** As given with the command name_speaker. */
  name: string | null;
  confidence: number;
}

export interface SpeakerSummary {
  /** One for each voice, the same for the life of the process. */
  label: string;
  /** As given with the command name_speaker. */
  name: string | null;
  confidence: number;
}

export interface SpeechEndedEvent {
  type: "voice.speech.ended";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  end_ms: number;
  endpoint: "silence" | "max_duration" | "requested" | "muted" | "end_of_input" | "shutdown" | "audio_lost";
}

export interface SpeechRejectedEvent {
  type: "voice.speech.rejected";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  start_ms: number;
  /** After its last speech, or where near speech began. */
  end_ms: number;
  /** Root mean square of the speech, pauses not counted, in dB relative to full scale. */
  level_dbfs: number;
  /** Root mean square of the noise before it, in dB relative to full scale. */
  noise_dbfs: number;
  /** Above 0 its sound is rather direct, below 0 rather reflected by the room; natural logarithm of the odds. */
  directness: number;
  /** Speech with a smaller level_dbfs is rejected. */
  min_level_dbfs: number;
  /** Speech with a smaller directness is rejected. */
  min_directness: number;
}

export interface SpeechStartedEvent {
  type: "voice.speech.started";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  start_ms: number;
}

export interface StatusEvent {
  type: "core.status_event";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  state: "loading" | "ready" | "listening" | "waiting" | "audio_lost" | "audio_restored" | "muted" | "unmuted" | "stopped";
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** Of the service; in ready. */
  version: string | null;
  /** Of these events; in ready. */
  schema_version: string | null;
  /** Name of the recognition model; in ready. */
  model: string | null;
  /** In stopped, and in the answer to a command. */
  totals: Totals | null;
  /** Name of the microphone; in listening and audio_restored. */
  device: string | null;
  /** Sample rate of the input; in listening and audio_restored. */
  rate_hz: number | null;
  /** Channels of the input; in listening and audio_restored. */
  channels: number | null;
  /** Of the command that this answers. */
  id: string | number | null;
}

export interface TokenTime {
  text: string;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  start_ms: number;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  end_ms: number;
  /** Posterior of this token; null where source is funasr.remote. */
  confidence: number | null;
}

export interface Totals {
  /** Utterances with text. */
  utterances: number;
  /** Utterances in which nothing was recognised: no event was sent. */
  empty_utterances: number;
  audio_ms: number;
  lost_ms: number;
  /** Speech that was not recognised: quieter than vad.min_rms, or not near (vad.near_field). */
  rejected_ms: number;
  errors: number;
  /** Utterances with text that no wake word let through; only with wake words. */
  unwoken_utterances?: number;
}

export interface WakeEvent {
  type: "voice.wake";
  /** Wall clock when the line was written, ms since the epoch. */
  ts: number;
  /** One per utterance; an error that belongs to none gets its own. */
  trace_id: string;
  source: "voice.asr";
  /** Lines of this process, from 1, without a gap. */
  seq: number;
  /** As the settings have it. */
  word: string;
  /** Of the word; both are the start of the utterance where no times are known. */
  start_ms: number;
  /** ms on the audio clock: 0 is the first sample the process captured. */
  end_ms: number;
  /** Wall clock when the sample at end_ms was captured, of a file or stdin when it was read; ms since the epoch. */
  captured_ts: number;
}

export type AnyEvent = EmotionEvent | ErrorEvent | FinalEvent | LevelEvent | PartialEvent | SpeakerEvent | SpeechEndedEvent | SpeechRejectedEvent | SpeechStartedEvent | StatusEvent | WakeEvent;

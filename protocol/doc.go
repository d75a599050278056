// Package protocol is the language that agent and relay share: the records (transaction,
// footfall count, drawer event, device state ...), the envelope that carries them, the
// streams that order them and the topics that they travel on. It does no I/O and imports
// nothing but the standard library.
//
// Names follow ARTS POSLog (business unit, workstation, business day, transaction, line
// item, tender), UnifiedPOS (drawer opened and closed) and GS1 (GTIN, GLN). Money is int64
// minor units, quantities are int64 thousandths; no float anywhere.
//
// JSON is lower camel case. Every body keeps the fields that it does not know (Extra), so a
// newer till or agent may say more than this version understands.
package protocol

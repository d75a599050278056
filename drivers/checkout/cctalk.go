package checkout

import (
	"bytes"
)

// The wire of ccTalk: 9600 8N1 on one line, so that a host hears itself unless its adapter
// takes that out. A message is destination, length of the data, source, header, data and a
// byte that makes the sum of all zero. ccTalk Generic Specification 4.4, part 1; headers:
// part 3. Azkoyen Modular X6, pages 37 to 42; Alberici AL66, page 43.
const (
	ccHost = 1 // our address

	ccReply     = 0   // header of an answer; with no data it is an ACK
	ccNACK      = 5   // header of a refusal
	ccPoll      = 254 // answered with an ACK
	ccInhibits  = 231 // two bytes: a bit for each coin that is taken, coin 1 lowest; an ACK
	ccCredits   = 229 // answered with the event counter and the last five events
	ccMaster    = 228 // one byte: 1 takes coins; an ACK, where it is known
	ccCoinID    = 184 // a coin's number; answered with six characters, such as EU100A
	ccHeader    = 4   // bytes before the data
	ccBuffer    = 5   // events that the acceptor keeps
	ccCoinNames = 6   // characters
	ccCoins     = 16
)

// ccMessage is a whole message to a device.
func ccMessage(to, header byte, data ...byte) []byte {
	m := append([]byte{to, byte(len(data)), ccHost, header}, data...)
	return append(m, -ccSum(m))
}

func ccSum(b []byte) (sum byte) {
	for _, x := range b {
		sum += x
	}
	return sum
}

// A ccAnswer is what a device said to us.
type ccAnswer struct {
	refused bool
	data    []byte
}

// ccFind looks for an answer of a device with so many bytes of data, or its refusal. Noise,
// our own echo, and answers to other questions before it are passed over.
func ccFind(buf []byte, from byte, length int) (ccAnswer, bool) {
	for ; len(buf) > ccHeader; buf = buf[1:] {
		n := int(buf[1])
		if buf[0] != ccHost || buf[2] != from || len(buf) < ccHeader+n+1 {
			continue
		}
		refused := buf[3] == ccNACK && n == 0
		if !refused && (buf[3] != ccReply || n != length) || ccSum(buf[:ccHeader+n+1]) != 0 {
			continue
		}
		return ccAnswer{refused, bytes.Clone(buf[ccHeader : ccHeader+n])}, true
	}
	return ccAnswer{}, false
}

// A ccEvent is one event of a coin acceptor: a coin that was taken (A is its number, B where
// it fell), or, when A is 0, what went wrong (B is the code).
type ccEvent struct{ A, B byte }

// ccEvents are the last five, newest first.
type ccEvents [ccBuffer]ccEvent

// A ccReading is the answer to ccCredits.
type ccReading struct {
	counter byte // of events: 0 after power-up, then 1 to 255, then 1 again
	events  ccEvents
}

// ccRead reads the data of that answer, which are 11 bytes.
func ccRead(data []byte) ccReading {
	r := ccReading{counter: data[0]}
	for i := range r.events {
		r.events[i] = ccEvent{data[1+2*i], data[2+2*i]}
	}
	return r
}

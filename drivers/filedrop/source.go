package filedrop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxPiece bounds what is read for one transaction, in bytes of UTF-8: a record has at most
// an eighth of it, and XML is wordy.
const maxPiece = 1 << 20

// errPiece means that one transaction is longer than maxPiece.
var errPiece = errors.New("one transaction, or what stands between two, is longer than 1 MiB")

// The encodings of a file.
const (
	utf8Text = "utf-8"
	utf16LE  = "utf-16le"
	utf16BE  = "utf-16be"
	latin    = "windows-1252" // and ISO-8859-1, whose bytes 80 to 9F are those of Windows in practice
	latin9   = "iso-8859-15"
)

// encodings are the names that files and settings have for them.
var encodings = map[string]string{
	"utf-8": utf8Text, "utf8": utf8Text, "us-ascii": utf8Text, "ascii": utf8Text,
	"utf-16": utf8Text, "utf-16le": utf8Text, "utf-16be": utf8Text, // said of text that is not: .NET writes it so
	"iso-8859-1": latin, "latin1": latin, "latin-1": latin, "windows-1252": latin, "cp1252": latin,
	"iso-8859-15": latin9, "latin9": latin9,
}

// high is what the bytes 80 to 9F mean in Windows-1252; 0 = nothing.
var high = [32]rune{
	0x20AC, 0, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0, 0x017D, 0,
	0, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0, 0x017E, 0x0178,
}

// nine are the letters in which ISO-8859-15 differs from ISO-8859-1.
var nine = map[byte]rune{0xA4: 0x20AC, 0xA6: 0x0160, 0xA8: 0x0161, 0xB4: 0x017D, 0xB8: 0x017E, 0xBC: 0x0152, 0xBD: 0x0153, 0xBE: 0x0178}

// A source gives a file's text as UTF-8. It holds a few KiB of the file, and refuses to go on
// when a reader asks for more than maxPiece without having said that a piece is done.
type source struct {
	ctx      context.Context
	file     *watched
	in       *bufio.Reader
	encoding string
	pending  []byte // decoded and not yet read
	buf      [2 * utf8.UTFMax]byte
	piece    int // bytes since the last done
	line     int // of the next byte, from 1

	rehearsal bool // nothing is counted yet
}

// watched is a file that remembers whether reading it failed: then what a parser says of its
// text is no news about the text.
type watched struct {
	io.Reader
	n   int64
	end bool  // io.EOF was read
	err error // of the disk, not io.EOF
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.n += int64(n)
	if errors.Is(err, io.EOF) {
		w.end = true
	} else if err != nil {
		w.err = err
	}
	return n, err
}

// open begins to read. The encoding is "" without a byte order mark: the format knows more.
func open(ctx context.Context, file io.Reader) *source {
	s := &source{ctx: ctx, file: &watched{Reader: file}, line: 1}
	s.in = bufio.NewReaderSize(s.file, 32<<10)
	head, _ := s.in.Peek(4) // an error comes again with the first byte
	switch {
	case bytes.HasPrefix(head, []byte{0xEF, 0xBB, 0xBF}):
		s.encoding = utf8Text
		s.skip(3)
	case bytes.HasPrefix(head, []byte{0xFF, 0xFE}):
		s.encoding = utf16LE
		s.skip(2)
	case bytes.HasPrefix(head, []byte{0xFE, 0xFF}):
		s.encoding = utf16BE
		s.skip(2)
	case bytes.Equal(head, []byte{'<', 0, '?', 0}):
		s.encoding = utf16LE
	case bytes.Equal(head, []byte{0, '<', 0, '?'}):
		s.encoding = utf16BE
	}
	return s
}

func (s *source) skip(n int) { _, _ = s.in.Discard(n) } // they were peeked

var declared = regexp.MustCompile(`^\s*<\?xml[^>]*\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']`)

// declare takes the encoding that an XML declaration names, unless the text is UTF-16 or has
// a byte order mark.
func (s *source) declare() error {
	if s.encoding != "" {
		return nil
	}
	s.encoding = utf8Text
	head, _ := s.in.Peek(256)
	if found := declared.FindSubmatch(head); found != nil {
		known, ok := encodings[strings.ToLower(string(found[1]))]
		if !ok {
			return &fileError{1, "the text is encoded as " + string(found[1]), "known: UTF-8, UTF-16, ISO-8859-1, ISO-8859-15, Windows-1252"}
		}
		s.encoding = known
	}
	return nil
}

// done says that a piece was read: the next may be as long again.
func (s *source) done() { s.piece = 0 }

// ReadByte implements io.ByteReader.
func (s *source) ReadByte() (byte, error) {
	if s.piece++; s.piece > maxPiece {
		return 0, errPiece
	}
	if len(s.pending) == 0 {
		if err := s.decode(); err != nil {
			return 0, err
		}
	}
	b := s.pending[0]
	s.pending = s.pending[1:]
	if b == '\n' {
		s.line++
	}
	return b, nil
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	for i := range p {
		b, err := s.ReadByte()
		if err != nil {
			if i > 0 {
				return i, nil // it comes again
			}
			return 0, err
		}
		p[i] = b
	}
	return len(p), nil
}

// decode puts the next character into pending.
func (s *source) decode() error {
	b, err := s.in.ReadByte()
	if err != nil {
		return err
	}
	if b == '\n' && s.ctx.Err() != nil {
		s.file.err = s.ctx.Err()
		return s.file.err
	}
	s.pending = s.buf[:0]
	switch s.encoding {
	case latin, latin9:
		r := rune(b)
		if b >= 0x80 && b < 0xA0 && high[b-0x80] != 0 {
			r = high[b-0x80]
		} else if euro, ok := nine[b]; ok && s.encoding == latin9 {
			r = euro
		}
		s.pending = utf8.AppendRune(s.pending, r)
	case utf16LE, utf16BE:
		r, err := s.unit(b)
		if err != nil {
			return err
		}
		if utf16.IsSurrogate(r) {
			low, err := s.in.ReadByte()
			if err != nil {
				return half(err)
			}
			second, err := s.unit(low)
			if err != nil {
				return err
			}
			r = utf16.DecodeRune(r, second)
		}
		s.pending = utf8.AppendRune(s.pending, r)
	default:
		s.pending = append(s.pending, b)
	}
	return nil
}

// unit reads the second byte of a UTF-16 unit.
func (s *source) unit(first byte) (rune, error) {
	second, err := s.in.ReadByte()
	if err != nil {
		return 0, half(err)
	}
	if s.encoding == utf16LE {
		return rune(second)<<8 | rune(first), nil
	}
	return rune(first)<<8 | rune(second), nil
}

func half(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the UTF-16 text ends within a letter: %w", io.ErrUnexpectedEOF)
	}
	return err
}

package drawer

// What a till sends to an ESC/POS printer, as far as a tap has to know it: where a command
// ends, which ones open a drawer, and which ones are answered. The lengths are those of
// Epson's command reference. A command that is not in the list counts as two bytes; what
// follows it is read as text.
const (
	dle = 0x10
	esc = 0x1B
	fs  = 0x1C
	gs  = 0x1D
)

// An order is what a till has told the printer.
type order struct {
	kind orderKind
	n    byte // kick: 2 or 5, the pin. ask: n of DLE EOT
}

type orderKind int

const (
	orderKick orderKind = iota + 1 // ESC p, DLE DC4 1
	orderAsk                       // DLE EOT n: one byte comes back
	orderText                      // a question that is answered with text
	orderMute                      // ESC @, GS a 0: no automatic status any more
)

// params are the bytes after the two of a command that has a fixed length.
var params = map[[2]byte]int{
	{esc, ' '}: 1, {esc, '!'}: 1, {esc, '$'}: 2, {esc, '%'}: 1, {esc, '-'}: 1, {esc, '3'}: 1, {esc, '='}: 1, {esc, '?'}: 1,
	{esc, 'E'}: 1, {esc, 'G'}: 1, {esc, 'J'}: 1, {esc, 'K'}: 1, {esc, 'M'}: 1, {esc, 'R'}: 1, {esc, 'T'}: 1, {esc, 'U'}: 1,
	{esc, 'V'}: 1, {esc, 'W'}: 8, {esc, '\\'}: 2, {esc, 'a'}: 1, {esc, 'c'}: 2, {esc, 'd'}: 1, {esc, 'e'}: 1, {esc, 'p'}: 3,
	{esc, 'r'}: 1, {esc, 't'}: 1, {esc, 'u'}: 1, {esc, '{'}: 1,
	{gs, '!'}: 1, {gs, '$'}: 2, {gs, '/'}: 1, {gs, 'B'}: 1, {gs, 'E'}: 1, {gs, 'H'}: 1, {gs, 'I'}: 1, {gs, 'L'}: 2, {gs, 'P'}: 2,
	{gs, 'T'}: 1, {gs, 'W'}: 2, {gs, '\\'}: 2, {gs, '^'}: 3, {gs, 'a'}: 1, {gs, 'b'}: 1, {gs, 'f'}: 1, {gs, 'h'}: 1, {gs, 'j'}: 1,
	{gs, 'r'}: 1, {gs, 'w'}: 1, {gs, 'z'}: 3, {gs, 'g'}: 4,
	{fs, '!'}: 1, {fs, '-'}: 1, {fs, '?'}: 2, {fs, 'C'}: 1, {fs, 'S'}: 2, {fs, 'W'}: 1, {fs, 'p'}: 2,
	{dle, 0x05}: 1,
}

// A tillStream finds the orders in what a till sends, in pieces of any size.
type tillStream struct {
	head   []byte // of a command whose length is not known yet
	skip   int64  // bytes of data that still belong to the command
	text   bool   // the data of a command goes on to a zero byte
	blocks block
}

// A block of a command that has several: head bytes, then as much data as they say.
type block struct {
	left int // blocks
	head int // bytes
	size func(head []byte) int64
}

// boundary says whether the next byte begins something new.
func (s *tillStream) boundary() bool {
	return len(s.head) == 0 && s.skip == 0 && !s.text && s.blocks.left == 0
}

// reset forgets a command that was never ended.
func (s *tillStream) reset() { *s = tillStream{} }

// push takes bytes and returns the orders that they complete.
func (s *tillStream) push(data []byte) []order {
	var out []order
	for i := 0; i < len(data); i++ {
		if s.skip > 0 {
			n := min(s.skip, int64(len(data)-i))
			s.skip -= n
			i += int(n) - 1
			continue
		}
		b := data[i]
		switch {
		case s.text:
			s.text = b != 0
		case s.blocks.left > 0:
			s.head = append(s.head, b)
			if len(s.head) == s.blocks.head {
				s.skip = s.blocks.size(s.head)
				s.head = s.head[:0]
				s.blocks.left--
			}
		case len(s.head) > 0 || b == dle || b == esc || b == fs || b == gs:
			s.head = append(s.head, b)
			if s.measure() {
				if o, ok := meaning(s.head); ok {
					out = append(out, o)
				}
				s.head = s.head[:0]
			}
		}
	}
	return out
}

// le is a number of two bytes, low byte first.
func le(b []byte) int64 { return int64(b[0]) | int64(b[1])<<8 }

// measure says whether the head is whole; what data comes after it is noted.
func (s *tillStream) measure() bool {
	h := s.head
	if len(h) < 2 {
		return false
	}
	if n, ok := params[[2]byte{h[0], h[1]}]; ok {
		return len(h) == 2+n
	}
	whole := func(n int) bool { return len(h) >= n }
	switch [2]byte{h[0], h[1]} {
	case [2]byte{dle, 0x04}: // DLE EOT n [a]
		if whole(3) && (h[2] == 7 || h[2] == 8 || h[2] == 18) {
			return whole(4)
		}
		return whole(3)
	case [2]byte{dle, 0x14}: // DLE DC4 fn ...
		if !whole(3) {
			return false
		}
		return whole(3 + map[byte]int{1: 2, 2: 2, 3: 5, 7: 1, 8: 7}[h[2]])
	case [2]byte{esc, '('}, [2]byte{gs, '('}, [2]byte{fs, '('}: // fn pL pH ...
		if !whole(5) {
			return false
		}
		s.skip = le(h[3:])
	case [2]byte{gs, '8'}: // L p1 p2 p3 p4 ...
		if !whole(7) {
			return false
		}
		s.skip = le(h[3:]) | le(h[5:])<<16
	case [2]byte{esc, '*'}: // m nL nH ...
		if !whole(5) {
			return false
		}
		s.skip = le(h[3:])
		if h[2] >= 32 {
			s.skip *= 3
		}
	case [2]byte{gs, 'v'}: // 0 m xL xH yL yH ...
		if !whole(8) {
			return false
		}
		s.skip = le(h[4:]) * le(h[6:])
	case [2]byte{gs, 'Q'}: // 0 m xL xH yL yH ...
		if !whole(8) {
			return false
		}
		s.skip = le(h[4:]) * le(h[6:])
	case [2]byte{gs, '*'}: // x y ...
		if !whole(4) {
			return false
		}
		s.skip = int64(h[2]) * int64(h[3]) * 8
	case [2]byte{gs, 'V'}: // m [n]
		return whole(3) && (h[2] < 65 || whole(4))
	case [2]byte{gs, 'k'}: // m text NUL, or m n ...
		if !whole(3) {
			return false
		}
		if h[2] <= 6 {
			s.text = true
			return true
		}
		if !whole(4) {
			return false
		}
		s.skip = int64(h[3])
	case [2]byte{gs, 'C'}:
		switch {
		case !whole(3):
			return false
		case h[2] == '0', h[2] == '2':
			return whole(5)
		case h[2] == '1':
			return whole(9)
		}
	case [2]byte{esc, 'D'}: // tabs NUL
		s.text = true
	case [2]byte{esc, '&'}: // y c1 c2, and for each character its width and columns
		if !whole(5) {
			return false
		}
		y := int64(h[2])
		s.blocks = block{left: max(int(h[4])-int(h[3])+1, 0), head: 1, size: func(b []byte) int64 { return y * int64(b[0]) }}
	case [2]byte{fs, 'q'}: // n images, each xL xH yL yH ...
		if !whole(3) {
			return false
		}
		s.blocks = block{left: int(h[2]), head: 4, size: func(b []byte) int64 { return le(b) * le(b[2:]) * 8 }}
	case [2]byte{fs, '2'}: // c1 c2 and 24 x 24 points
		if !whole(4) {
			return false
		}
		s.skip = 72
	}
	return true
}

// meaning is what a whole head orders, if it is anything to a tap.
func meaning(h []byte) (order, bool) {
	kick := func(m byte) (order, bool) {
		switch m {
		case 0, '0':
			return order{orderKick, 2}, true
		case 1, '1':
			return order{orderKick, 5}, true
		}
		return order{}, false
	}
	switch [2]byte{h[0], h[1]} {
	case [2]byte{esc, 'p'}:
		return kick(h[2])
	case [2]byte{dle, 0x14}:
		if h[2] == 1 && h[4] >= 1 && h[4] <= 8 && h[3] <= 1 {
			return kick(h[3])
		}
	case [2]byte{dle, 0x04}:
		return order{orderAsk, h[2]}, true
	case [2]byte{esc, '@'}:
		return order{kind: orderMute}, true
	case [2]byte{gs, 'a'}:
		if h[2] == 0 {
			return order{kind: orderMute}, true
		}
	case [2]byte{gs, 'I'}, [2]byte{gs, 'g'}:
		return order{kind: orderText}, true
	case [2]byte{gs, '('}:
		return order{kind: orderText}, h[2] == 'C' || h[2] == 'E' || h[2] == 'H'
	}
	return order{}, false
}

package link

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
)

func TestUnpackIsTheInverseOfPack(t *testing.T) {
	var p packer
	rapid.Check(t, func(t *rapid.T) {
		want := append([]byte("{"), bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "part"), rapid.IntRange(0, 1000).Draw(t, "times"))...)
		packed, err := p.pack(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.unpack(packed)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("unpack: %v, %d bytes, want %d", err, len(got), len(want))
		}
	})
}

func TestABombIsRefused(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var p packer
	for _, size := range []int{protocol.MaxUnpacked + 1, 1 << 28} {
		bomb := enc.EncodeAll(make([]byte, size), nil)
		if len(bomb) > protocol.MaxWire {
			t.Fatalf("bomb of %d bytes is no bomb", len(bomb))
		}
		if out, err := p.unpack(bomb); !errors.Is(err, ErrTooBig) {
			t.Errorf("%d bytes: %d bytes, %v, want ErrTooBig", size, len(out), err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte(zstdMagic + "xxxx"))
	var p packer
	f.Fuzz(func(t *testing.T, data []byte) {
		if out, err := p.unpack(data); err == nil && len(out) > protocol.MaxUnpacked {
			t.Errorf("%d bytes unpacked", len(out))
		}
	})
}

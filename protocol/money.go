package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Money is an amount in minor units (öre, cents) of an ISO 4217 currency.
type Money struct {
	Minor    int64  `json:"minor"`
	Currency string `json:"currency"` // ISO 4217 alphabetic code
}

// String writes the amount with its currency's decimals: "129.00 SEK".
func (m Money) String() string {
	exp, ok := CurrencyExponent(m.Currency)
	if !ok {
		return strconv.FormatInt(m.Minor, 10) + " minor " + m.Currency
	}
	return FormatMinor(m.Minor, exp) + " " + m.Currency
}

// FormatMinor writes minor units as a decimal string with exp decimals, without float.
func FormatMinor(minor int64, exp int) string {
	if exp == 0 {
		return strconv.FormatInt(minor, 10)
	}
	sign, abs := "", uint64(minor)
	if minor < 0 {
		sign, abs = "-", -uint64(minor) // two's complement: right for MinInt64 too
	}
	s := strconv.FormatUint(abs, 10)
	if len(s) <= exp {
		s = strings.Repeat("0", exp+1-len(s)) + s
	}
	return sign + s[:len(s)-exp] + "." + s[len(s)-exp:]
}

// ParseMinor reads a decimal string ("129", "129.5", "-0.05") as minor units with exp
// decimals. More decimals than exp are an error unless they are zeros; so is overflow.
func ParseMinor(s string, exp int) (int64, error) {
	d, err := ParseDecimal(s)
	if err != nil {
		return 0, err
	}
	for d.Scale > exp {
		if d.Units%10 != 0 {
			return 0, fmt.Errorf("%q has more than %d decimals", s, exp)
		}
		d.Units /= 10
		d.Scale--
	}
	for d.Scale < exp {
		if d.Units > math.MaxInt64/10 || d.Units < math.MinInt64/10 {
			return 0, fmt.Errorf("%q is too large", s)
		}
		d.Units *= 10
		d.Scale++
	}
	return d.Units, nil
}

// A Decimal is Units / 10^Scale: a unit price, which may need more decimals than its
// currency has. In JSON it is a string ("12.3450") so that no reader makes a float of it.
type Decimal struct {
	Units int64
	Scale int // 0..9
}

// ParseDecimal reads [-]digits[.digits] with at most 9 decimals.
func ParseDecimal(s string) (Decimal, error) {
	digits, neg := strings.CutPrefix(s, "-")
	whole, frac, dot := strings.Cut(digits, ".")
	if whole == "" || (dot && frac == "") || len(frac) > 9 || strings.Trim(whole+frac, "0123456789") != "" {
		return Decimal{}, fmt.Errorf("%q is not a decimal number such as 129.50", s)
	}
	sign := ""
	if neg {
		sign = "-"
	}
	units, err := strconv.ParseInt(sign+whole+frac, 10, 64)
	if err != nil {
		return Decimal{}, fmt.Errorf("%q is too large", s)
	}
	return Decimal{Units: units, Scale: len(frac)}, nil
}

func (d Decimal) String() string { return FormatMinor(d.Units, d.Scale) }

// MarshalJSON writes the decimal as a JSON string.
func (d Decimal) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON takes a string, or a JSON number read digit by digit.
func (d *Decimal) UnmarshalJSON(data []byte) error {
	s := string(bytes.Trim(data, `"`))
	v, err := ParseDecimal(s)
	if err != nil {
		return Faults{{Problem: err.Error()}}
	}
	*d = v
	return nil
}

// CurrencyExponent gives the number of decimals of an ISO 4217 currency in use, and whether
// the code is one. Source: ISO 4217 list one, active codes.
func CurrencyExponent(code string) (int, bool) {
	if len(code) != 3 {
		return 0, false
	}
	for exp, codes := range [...]string{
		0: " BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF ",
		2: " AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG ",
		3: " BHD IQD JOD KWD LYD OMR TND ",
	} {
		if strings.Contains(codes, " "+code+" ") {
			return exp, true
		}
	}
	return 0, false
}

// A Quantity is an amount of goods in thousandths of its unit: 1000 of EA is one piece, 420
// of KGM is 0.42 kg. Signed: goods that come back are negative.
type Quantity struct {
	Milli int64  `json:"milli"`
	Unit  string `json:"unit,omitempty"` // UN/ECE Recommendation 20 code, or EA; "" means EA
}

// Weighed says whether the goods are measured rather than counted.
func (q Quantity) Weighed() bool {
	return q.Unit != "" && q.Unit != "EA" && q.Unit != "C62" && q.Unit != "H87"
}

// Units is the number of pieces that the quantity counts as, signed: a weighed line is one
// piece whatever it weighs.
func (q Quantity) Units() int64 {
	switch {
	case q.Weighed() && q.Milli > 0:
		return 1
	case q.Weighed() && q.Milli < 0:
		return -1
	case q.Milli%1000 != 0: // half a piece is still handed over as one article line
		if q.Milli > 0 {
			return q.Milli/1000 + 1
		}
		return q.Milli/1000 - 1
	}
	return q.Milli / 1000
}

//! Any plain value as a row of numbers and back, by serde: fields in their order, texts by their place in
//! a dictionary. Values of one shape have rows of one width, and the same field stands in the same place.

use std::fmt;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::de::{self, DeserializeSeed, IntoDeserializer as _, Visitor};
use serde::ser::{self, Serialize};
use serde::{Deserialize, Deserializer};

/// Why a value has no cells, or cells are no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cells end too early.
    #[error("a row is too short")]
    Short,
    /// A number stands where it cannot be.
    #[error("a row holds what cannot be")]
    Damaged,
    /// The value says so.
    #[error("{0}")]
    Value(String),
}

impl ser::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
}

/// Texts by the order in which they were first seen.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    known: HashMap<Arc<str>, u64>,
    list: Vec<Arc<str>>,
    bytes: usize,
}

impl Texts {
    fn number(&mut self, text: &str) -> u64 {
        if let Some(number) = self.known.get(text) {
            return *number;
        }
        let number = self.list.len() as u64;
        let text: Arc<str> = text.into();
        self.bytes += text.len();
        self.known.insert(Arc::clone(&text), number);
        self.list.push(text);
        number
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn into_list(self) -> Vec<Arc<str>> {
        self.list
    }
}

/// The cells of a value.
pub(crate) fn flatten(value: &impl Serialize, texts: &mut Texts) -> Result<Vec<u64>, Error> {
    let mut writer = Writer {
        cells: Vec::new(),
        texts,
    };
    value.serialize(&mut writer)?;
    Ok(writer.cells)
}

/// The value of cells.
pub(crate) fn restore<'a, T: Deserialize<'a>>(
    cells: &[u64],
    texts: &'a [Arc<str>],
) -> Result<T, Error> {
    let mut reader = Reader { cells, texts };
    let value = T::deserialize(&mut reader)?;
    if reader.cells.is_empty() {
        Ok(value)
    } else {
        Err(Error::Damaged)
    }
}

struct Writer<'a> {
    cells: Vec<u64>,
    texts: &'a mut Texts,
}

/// Decimals that figures of `/proc` have at most.
const DECIMALS: f64 = 1000.0;
/// Beyond this a number of thousandths is not exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

macro_rules! write_numbers {
    ($($method:ident: $type:ty => $widened:ty,)*) => {
        $(fn $method(self, value: $type) -> Result<(), Error> {
            self.cells.push(<$widened>::from(value) as u64);
            Ok(())
        })*
    };
}

impl ser::Serializer for &mut Writer<'_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    write_numbers! {
        serialize_i8: i8 => i64,
        serialize_i16: i16 => i64,
        serialize_i32: i32 => i64,
        serialize_i64: i64 => i64,
    }

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.cells.push(value);
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_u64(u32::from(value).into())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.serialize_f64(value.into())
    }

    /// Thousandths where it is exactly so many, and else its bits.
    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        let thousandths = (value * DECIMALS).round();
        let whole = thousandths as u64;
        let is_exact = (0.0..EXACT).contains(&thousandths)
            && (whole as f64 / DECIMALS).to_bits() == value.to_bits();
        let cells = if is_exact {
            [whole, 0]
        } else {
            [value.to_bits(), 1]
        };
        self.cells.extend(cells);
        Ok(())
    }

    fn serialize_str(self, text: &str) -> Result<(), Error> {
        let number = self.texts.number(text);
        self.cells.push(number);
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), Error> {
        Err(Error::Value("bytes have no cells".to_owned()))
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.cells.push(0);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.cells.push(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        at: u32,
        _: &'static str,
    ) -> Result<(), Error> {
        self.serialize_u32(at)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        at: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.cells.push(at.into());
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self, Error> {
        let length = length.ok_or_else(|| Error::Value("a list without a length".to_owned()))?;
        self.cells.push(length as u64);
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        at: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Error> {
        self.cells.push(at.into());
        Ok(self)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self, Error> {
        self.serialize_seq(length)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        at: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Error> {
        self.cells.push(at.into());
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! write_elements {
    ($($of:ident: $method:ident,)*) => {
        $(impl ser::$of for &mut Writer<'_> {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

write_elements! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
}

macro_rules! write_fields {
    ($($of:ident,)*) => {
        $(impl ser::$of for &mut Writer<'_> {
            type Ok = ();
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

write_fields! {
    SerializeStruct,
    SerializeStructVariant,
}

impl ser::SerializeMap for &mut Writer<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

struct Reader<'a, 'c> {
    cells: &'c [u64],
    texts: &'a [Arc<str>],
}

impl<'a> Reader<'a, '_> {
    fn next(&mut self) -> Result<u64, Error> {
        self.cells.split_off_first().copied().ok_or(Error::Short)
    }

    fn text(&mut self) -> Result<&'a str, Error> {
        let number = usize::try_from(self.next()?).map_err(|_| Error::Damaged)?;
        let text = self.texts.get(number);
        text.map(AsRef::as_ref).ok_or(Error::Damaged)
    }

    /// Elements of a list: no more than there are cells, which all have at least one.
    fn length(&mut self) -> Result<usize, Error> {
        let length = usize::try_from(self.next()?).map_err(|_| Error::Damaged)?;
        if length > self.cells.len() {
            return Err(Error::Short);
        }
        Ok(length)
    }
}

macro_rules! read_numbers {
    ($($method:ident: $visit:ident $type:ty as $widened:ty,)*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
            let cell = self.next()? as $widened;
            let value = <$type>::try_from(cell).map_err(|_| Error::Damaged)?;
            visitor.$visit(value)
        })*
    };
}

impl<'a> Deserializer<'a> for &mut Reader<'a, '_> {
    type Error = Error;

    read_numbers! {
        deserialize_i8: visit_i8 i8 as i64,
        deserialize_i16: visit_i16 i16 as i64,
        deserialize_i32: visit_i32 i32 as i64,
        deserialize_u8: visit_u8 u8 as u64,
        deserialize_u16: visit_u16 u16 as u64,
        deserialize_u32: visit_u32 u32 as u64,
    }

    fn deserialize_i64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(self.next()? as i64)
    }

    fn deserialize_u64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(self.next()?)
    }

    fn deserialize_any<V: Visitor<'a>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::Value("cells do not say what they are".to_owned()))
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.next()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(Error::Damaged),
        }
    }

    fn deserialize_f32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        let number = self.next()?;
        visitor.visit_f64(match self.next()? {
            0 => number as f64 / DECIMALS,
            1 => f64::from_bits(number),
            _ => return Err(Error::Damaged),
        })
    }

    fn deserialize_char<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        let code = u32::try_from(self.next()?).ok();
        visitor.visit_char(code.and_then(char::from_u32).ok_or(Error::Damaged)?)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.next()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self),
            _ => Err(Error::Damaged),
        }
    }

    fn deserialize_unit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = self.length()?;
        visitor.visit_seq(Elements { reader: self, left })
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { reader: self, left })
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { reader: self, left })
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = self.length()?;
        visitor.visit_map(Elements { reader: self, left })
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

struct Elements<'r, 'a, 'c> {
    reader: &'r mut Reader<'a, 'c>,
    left: usize,
}

impl<'a> de::SeqAccess<'a> for Elements<'_, 'a, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'a> de::MapAccess<'a> for Elements<'_, 'a, '_> {
    type Error = Error;

    fn next_key_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        de::SeqAccess::next_element_seed(self, seed)
    }

    fn next_value_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }
}

impl<'a> de::EnumAccess<'a> for &mut Reader<'a, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        let at = u32::try_from(self.next()?).map_err(|_| Error::Damaged)?;
        let value = seed.deserialize(at.into_deserializer());
        value.map(|value: T::Value| (value, self))
    }
}

impl<'a> de::VariantAccess<'a> for &mut Reader<'a, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'a>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_tuple(left, visitor)
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(fields.len(), visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Nothing,
        One(i32),
        Two(u8, String),
        Named { text: Option<String>, yes: bool },
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Everything {
        kind: Kind,
        list: Vec<Kind>,
        floats: [f64; 3],
        letter: char,
        map: BTreeMap<String, i64>,
        nested: Option<Box<Everything>>,
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Nothing),
            any::<i32>().prop_map(Kind::One),
            (any::<u8>(), any::<String>()).prop_map(|(number, text)| Kind::Two(number, text)),
            (any::<Option<String>>(), any::<bool>())
                .prop_map(|(text, yes)| Kind::Named { text, yes }),
        ]
    }

    fn float() -> impl Strategy<Value = f64> {
        let decimal = (0_u32..1_000_000).prop_map(|number| f64::from(number) / 100.0);
        let any = any::<f64>().prop_filter("equal to itself", |float| !float.is_nan());
        prop_oneof![decimal, any, Just(-0.0)]
    }

    fn everything() -> impl Strategy<Value = Everything> {
        let one = (
            kind(),
            prop::collection::vec(kind(), 0..4),
            [float(), float(), float()],
            any::<char>(),
            prop::collection::btree_map(any::<String>(), any::<i64>(), 0..3),
        );
        let one = one.prop_map(|(kind, list, floats, letter, map)| Everything {
            kind,
            list,
            floats,
            letter,
            map,
            nested: None,
        });
        prop::collection::vec(one, 1..3).prop_map(|mut both| {
            let inner = both.pop();
            let mut outer = both.pop().or_else(|| inner.clone()).expect("one of them");
            if outer.nested.is_none() {
                outer.nested = inner.map(Box::new);
            }
            outer
        })
    }

    proptest! {
        #[test]
        fn a_value_is_what_its_cells_say(value in everything()) {
            let mut texts = Texts::default();
            let cells = flatten(&value, &mut texts).expect("plain data");
            let texts = texts.into_list();
            let read: Everything = restore(&cells, &texts).expect("its own cells");
            prop_assert_eq!(&read, &value);
            // Zero has two forms.
            let bits = |floats: [f64; 3]| floats.map(f64::to_bits);
            prop_assert_eq!(bits(read.floats), bits(value.floats));
            for end in 0..cells.len() {
                prop_assert!(restore::<Everything>(&cells[..end], &texts).is_err());
            }
        }

        #[test]
        fn no_cells_make_it_panic(cells in prop::collection::vec(any::<u64>(), 0..40)) {
            let _ = restore::<Everything>(&cells, &["a".into()]);
        }
    }
}

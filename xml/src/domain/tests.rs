use super::*;

fn element(text: &str) -> Element {
    Element::parse(text).unwrap()
}

#[test]
fn sizes_are_read_with_libvirts_units() {
    let bytes = |text: &str| scaled_bytes(&element(text), 1024);
    assert_eq!(bytes("<m>2</m>"), Some(2048));
    assert_eq!(bytes("<m unit='b'>2</m>"), Some(2));
    assert_eq!(bytes("<m unit='KB'>2</m>"), Some(2000));
    assert_eq!(bytes("<m unit='k'>2</m>"), Some(2048));
    assert_eq!(bytes("<m unit='GiB'>1</m>"), Some(1 << 30));
    assert_eq!(bytes("<m unit='e'>15</m>"), Some(15 << 60));
    assert_eq!(bytes("<m unit='e'>16</m>"), None);
    assert_eq!(bytes("<m unit='kk'>1</m>"), None);
    assert_eq!(bytes("<m>-1</m>"), None);
}

//! What is read of a head, in every form it may have.

use http::HeaderValue;
use http::Request;
use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

#[test]
fn the_dialect_is_chosen_by_its_header() {
    let of = |pairs: &[(&'static str, &str)]| Dialect::of(&headers(pairs));
    assert_eq!(of(&[]), Ok(Dialect::Native));
    assert_eq!(of(&[("tus-resumable", "1.0.0")]), Ok(Dialect::Tus));
    for wrong in ["1.0", "0.2.2", "2.0.0", "", "1.0.0, 1.0.0"] {
        assert_eq!(of(&[("tus-resumable", wrong)]), Err(Code::UnsupportedTusVersion), "{wrong}");
        assert_eq!(shape(&headers(&[("tus-resumable", wrong)])), Shape::Tus);
    }
    for version in Interop::ALL {
        let number = version.number().to_string();
        assert_eq!(of(&[("upload-draft-interop-version", &number)]), Ok(Dialect::Ietf(version)));
    }
    for unknown in ["1", "2", "4", "7", "9", "08", "6.0", "x", ""] {
        assert_eq!(of(&[("upload-draft-interop-version", unknown)]), Ok(Dialect::Native), "{unknown}");
    }
    let both = [("tus-resumable", "1.0.0"), ("upload-draft-interop-version", "6")];
    assert_eq!(of(&both), Err(Code::UnsupportedUploadVersion));
}

#[test]
fn only_a_post_of_tus_may_stand_for_another_method() {
    let of = |method: &str, pairs: &[(&'static str, &str)]| {
        let mut request = Request::builder().method(method).uri("/chunks/x").body(()).unwrap();
        *request.headers_mut() = headers(pairs);
        super::method(request.method(), request.headers())
    };
    let (tus, patch) = (("tus-resumable", "1.0.0"), ("x-http-method-override", "PATCH"));
    assert_eq!(of("POST", &[tus, patch]), Some(Method::PATCH));
    assert_eq!(of("POST", &[tus, ("x-http-method-override", "HEAD")]), Some(Method::HEAD));
    assert_eq!(of("POST", &[patch]), None, "of tus alone");
    assert_eq!(of("GET", &[tus, patch]), None);
    assert_eq!(of("POST", &[tus, ("x-http-method-override", "a b")]), None);
    assert_eq!(of("POST", &[tus]), None);
}

#[test]
fn a_media_type_may_have_parameters() {
    let of = |value: &str| media_type(&headers(&[("content-type", value)]), "application/partial-upload");
    assert_eq!(of("application/partial-upload"), Ok(()));
    assert_eq!(of("Application/Partial-Upload ; x=1"), Ok(()));
    assert_eq!(of("application/octet-stream"), Err(Code::UnsupportedMediaType));
    assert_eq!(media_type(&headers(&[]), "application/partial-upload"), Err(Code::UnsupportedMediaType));
}

proptest! {
    #[test]
    fn no_header_panics(values in prop::collection::vec(prop::collection::vec(0x20u8..=0xff, 0..40), 4)) {
        let names = ["tus-resumable", "upload-draft-interop-version", "content-type", "x-http-method-override"];
        let mut request = Request::post("/chunks").body(()).unwrap();
        for (name, value) in names.into_iter().zip(&values) {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                request.headers_mut().insert(name, value);
            }
        }
        let parts = request.into_parts().0;
        let _ = shape(&parts.headers);
        let _ = method(&parts.method, &parts.headers);
        let _ = media_type(&parts.headers, "a/b");
    }
}

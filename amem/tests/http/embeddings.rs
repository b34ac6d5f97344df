//! `/v1/embeddings`.

use amem_core::Model;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::front::Front;
use super::{common, post};

fn embed(front: &Front, body: &Value) -> Value {
    let (status, answer) = post(front.url("/v1/embeddings"), body);
    assert_eq!(status, 200, "{answer}");
    answer
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    for (index, one) in data.iter().enumerate() {
        assert_eq!((&one["object"], &one["index"]), (&json!("embedding"), &json!(index)));
    }
    data.iter().map(|one| serde_json::from_value(one["embedding"].clone()).unwrap()).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[test]
fn each_text_has_a_unit_vector_which_no_other_text_changes() {
    let front = Front::of(common::in_ram());
    let texts = ["Alice lives in Rome.", "Bob works at Lego.", "Alice lives in Rome."];
    let tokens: Vec<Vec<u32>> = texts.iter().map(|text| common::MODEL.chat().encode(text).unwrap()).collect();
    let answer = embed(&front, &json!({ "model": "any", "input": texts }));
    let all = vectors(&answer);
    let shape = common::MODEL.info().shape;
    for vector in &all {
        assert_eq!(vector.len(), shape.kv_heads * shape.head_dim);
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
    }
    assert_eq!(all[0], all[2]);
    assert!(cosine(&all[0], &all[1]) < 0.999);
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["model"], common::MODEL.info().name);
    let count: usize = tokens.iter().map(Vec::len).sum();
    assert_eq!(answer["usage"], json!({ "prompt_tokens": count, "total_tokens": count }));
    for (text, (tokens, vector)) in texts.iter().zip(tokens.iter().zip(&all)) {
        assert_eq!(vectors(&embed(&front, &json!({ "input": text }))), std::slice::from_ref(vector));
        assert_eq!(vectors(&embed(&front, &json!({ "input": tokens }))), std::slice::from_ref(vector));
    }
    assert_eq!(vectors(&embed(&front, &json!({ "input": tokens }))), all);
}

#[test]
fn numbers_can_be_had_as_bytes() {
    let front = Front::of(common::in_ram());
    let numbers = vectors(&embed(&front, &json!({ "input": "Alice", "encoding_format": "float" })));
    let answer = embed(&front, &json!({ "input": "Alice", "encoding_format": "base64" }));
    let bytes = STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let (fours, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    assert_eq!(fours.iter().map(|four| f32::from_le_bytes(*four)).collect::<Vec<_>>(), numbers[0]);
}

#[test]
fn a_text_is_closer_to_one_that_shares_its_words() {
    let front = Front::of(common::in_ram());
    let texts = ["Where does Alice live?", "Alice lives in Rome.", "The cake needs cinnamon."];
    let all = vectors(&embed(&front, &json!({ "input": texts })));
    assert!(cosine(&all[0], &all[1]) > cosine(&all[0], &all[2]));
}

#[test]
fn what_cannot_be_embedded_is_refused_by_its_name() {
    let front = Front::of(common::in_ram());
    let dimensions = common::MODEL.info().shape.row();
    for (param, body) in [
        ("input", json!({ "input": "" })),
        ("input", json!({ "input": [] })),
        ("input", json!({ "input": ["a", ""] })),
        ("input", json!({ "input": vec!["a"; 2049] })),
        ("input", json!({ "input": [[1], [999_999]] })),
        ("input", json!({ "input": vec![vec![9; 1000]; 301] })),
        ("dimensions", json!({ "input": "a", "dimensions": dimensions - 1 })),
        ("dimensions", json!({ "input": "a", "dimensions": -1 })),
        ("encoding_format", json!({ "input": "a", "encoding_format": "hex" })),
    ] {
        let (status, answer) = post(front.url("/v1/embeddings"), &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    let (status, answer) = post(front.url("/v1/embeddings"), &json!({ "input": vec![9; 5000] }));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(post(front.url("/v1/embeddings"), &json!({ "input": { "a": 1 } })).0, 422);
    embed(&front, &json!({ "input": "a", "dimensions": dimensions, "encoding_format": null, "user": null }));
}

"""The ONNX graph of an unchanged encoder: conversion, head, removal of padding, inner states."""
